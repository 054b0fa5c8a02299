"""Streamed text: pieces of any token ids, joined, are the decoded text; a cut between tokens changes nothing."""

from typing import Any

import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer, decoders, models

from dreamkit.document import Text
from dreamkit.model.text_stream import TextStream, lead_byte
from dreamkit_transformers.tokenizers import byte_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["<unk>", "▁a", "b", "é", "▁", "\ufffd", "▁\ufffd", "日"]


class Words:
    """A tokenizer in the place of a language model."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return list(getattr(ids, "ids", ids))

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def byte_fallback() -> Tokenizer:
    """Return a tokenizer like those of SentencePiece: words, and bytes for other characters."""
    vocab = {name: index for index, name in enumerate([*WORDS, *BYTES])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def without_bytes() -> Tokenizer:
    vocab = {name: index for index, name in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


MODELS = {
    "byte fallback": Words(byte_fallback()),
    "bytes": Words(byte_tokenizer()),
    "no bytes": Words(without_bytes()),
}
FIRST_BYTE = len(WORDS)
byte_ids = st.integers(FIRST_BYTE, FIRST_BYTE + 255)
characters = st.sampled_from(["é", "日", "😀", "a"]).map(
    lambda character: [FIRST_BYTE + byte for byte in character.encode()]
)
fallback_ids = st.lists(
    st.one_of(
        characters, st.lists(byte_ids, max_size=2), st.lists(st.integers(1, FIRST_BYTE - 1), max_size=2)
    ),
    max_size=6,
).map(lambda parts: [token for part in parts for token in part])
CASES = st.one_of(
    st.tuples(st.just("byte fallback"), fallback_ids),
    st.tuples(
        st.just("bytes"),
        fallback_ids.map(lambda ids: [token - FIRST_BYTE + 4 for token in ids if token >= 12]),
    ),
    st.tuples(st.just("no bytes"), st.lists(st.integers(1, len(WORDS) - 1), max_size=6)),
)


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
