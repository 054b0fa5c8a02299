"""Tokenizers in the place of a language model, with bytes or without, and ids of theirs for streams of text."""

from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

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
    tokenizer.add_special_tokens(["<unk>"])
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
