"""Streamed text: pieces of any token ids, joined, are the decoded text; a cut between tokens changes nothing."""

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, strategies as st

from dreamkit.document import Text
from dreamkit.model import growing_text
from dreamkit.model.growing_text import STRIDE
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


@given(st.lists(CASES, min_size=1, max_size=8), st.integers(1, 4))
def test_pieces_are_the_same_if_only_the_last_ids_are_decoded_again(
    cases: list[tuple[str, list[int]]], stride: int
) -> None:
    name = cases[0][0]
    ids = [token for other, some in cases if other == name for token in some]
    with patch.object(growing_text, "STRIDE", len(ids) + 1):
        expected, _ = write(name, ids)
    with patch.object(growing_text, "STRIDE", stride):
        assert write(name, ids)[0] == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_long_text_is_not_decoded_again_with_each_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]
    ids = [token for _ in range(200) for token in model.tokenize("ab a")]
    lengths = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda some: lengths.append(len(some)) or decode(some))
    stream = TextStream(model, lead_byte(model))
    pieces = [new[0] for token in [*ids, None] if (new := stream.take(token)) is not None]
    assert "".join(pieces) == decode(ids)
    assert max(lengths) <= 3 * STRIDE


def test_many_tokens_without_text_change_nothing() -> None:
    """With `ignore_eos`, a document may have many end tokens."""
    ids = [2, *[0] * (3 * STRIDE), 1, 2]
    assert "".join(write("byte fallback", ids)[0]) == MODELS["byte fallback"].decode(ids) == "b ab"


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
