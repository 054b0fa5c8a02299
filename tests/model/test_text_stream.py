"""Streamed text: pieces of any token ids, joined, are the decoded text; a cut between tokens changes nothing."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from dreamkit.document import Text
from dreamkit.model.text_stream import TextStream, lead_byte
from token_streams import CASES, FIRST_BYTE, MODELS


def write(name: str, ids: list[int], earlier: list[Text] | None = None) -> tuple[list[str], list[Text]]:
    """Return the streamed pieces of `ids` after `earlier` texts, and all texts afterwards."""
    language_model: Any = MODELS[name]
    stream = TextStream(language_model, lead_byte(language_model), earlier or ())
    taken = [*map(stream.take, ids), stream.take()]
    pieces = [piece for piece in taken if piece is not None]
    assert [token for _, tokens in pieces for token in tokens] == ids
    new = stream.segment(None)
    texts = (earlier or []) if new is None else [*stream.earlier_texts(), new]
    return [text for text, _ in pieces], texts


@given(CASES)
def test_pieces_joined_are_the_text(case: tuple[str, list[int]]) -> None:
    name, ids = case
    pieces, texts = write(name, ids)
    assert "".join(pieces) == "".join(text.text for text in texts) == MODELS[name].decode(ids)


@given(CASES, st.data())
def test_a_text_that_is_continued_after_any_tokens_is_the_same(
    case: tuple[str, list[int]], data: st.DataObject
) -> None:
    name, ids = case
    texts: list[Text] = []
    start = 0
    while start < len(ids):
        end = data.draw(st.integers(start + 1, len(ids)))
        _, texts = write(name, ids[start:end], texts)
        start = end
    assert "".join(text.text for text in texts) == MODELS[name].decode(ids)
    assert [token for text in texts for token in text.ids or ()] == ids


def test_a_character_before_a_broken_byte_is_not_streamed_before_the_byte() -> None:
    """A byte fallback decodes neighbouring bytes together: the broken byte makes the whole character broken."""
    ids = [1, *(FIRST_BYTE + byte for byte in "é".encode()), FIRST_BYTE + 0xFF, 2]
    pieces, _ = write("byte fallback", ids)
    assert pieces == ["a", "\ufffd\ufffd\ufffdb"]


@pytest.mark.parametrize(
    ("name", "has_bytes"), [("byte fallback", True), ("bytes", True), ("no bytes", False)]
)
def test_the_lead_byte_starts_a_character(name: str, has_bytes: bool) -> None:
    language_model: Any = MODELS[name]
    lead = lead_byte(language_model)
    assert (lead is not None) == has_bytes
    assert lead is None or language_model.decode([lead]) == "\ufffd"
