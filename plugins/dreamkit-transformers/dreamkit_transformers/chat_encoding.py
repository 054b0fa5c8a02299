"""Tokenization of a rendered conversation, in which names of control tokens in the speakers' texts are plain text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from dreamkit import DocumentError, Turn, excerpt
from dreamkit_transformers.chat_rendering import common_length, tokenizer_name, unused_characters


class Encoding:
    """The ids of a rendered text, and the places of its characters among them.

    Attributes:
        plain: characters that stand for names of control tokens which are plain text.
        ids: the ids of the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, plain: Mapping[str, str]) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.plain = plain
        self.ids = self._encode(text)

    def tokens_before(self, at: int) -> int:
        """Return the number of ids that the text and its first `at` characters have in common.

        A control token divides a text into two that are tokenized apart, so the last one before `at` is the start.
        """
        start, first = self._divisions[bisect_right(self._divisions, at, key=lambda each: each[0]) - 1]
        ids = self._encode(self.text[start:at])
        return first + common_length(ids, self.ids[first : first + len(ids)])

    @cached_property
    def _divisions(self) -> list[tuple[int, int]]:
        """The places of the tokens that divide a text, and of the start, in the text and in its ids.

        These are the special tokens, and others that are searched in a text before it is normalized. The latter must
        be outside the model's vocabulary and whole names, so that their ids stand for the first places of the names.
        """
        tokens = self.tokenizer.added_tokens_decoder.items()
        names = {
            index: str(token)
            for index, token in tokens
            if token.special
            or not (token.normalized or token.single_word or index < self.tokenizer.vocab_size)
        }
        names.pop(self.tokenizer.unk_token_id, None)
        places, end = [(0, 0)], 0
        for number, index in enumerate(self.ids):
            if index in names:
                at = self.text.find(names[index], end)
                if at == -1:  # a normalized name; the last place is a start too
                    break
                places.append((at, number))
                end = at + len(names[index])
        return places

    def _encode(self, text: str) -> list[int]:
        if not self.plain:
            return self._ids(text)
        first, *others = re.split(f"([{''.join(self.plain)}])", text)
        ids = self._ids(first)
        for piece in filter(None, others):
            ids += self._name_ids(self.plain[piece]) if piece in self.plain else self._inner_ids(piece)
        return ids

    def _name_ids(self, name: str) -> list[int]:
        """Return the ids of the name of a control token as plain text.

        Raises:
            DocumentError: the tokenizer has no other ids for it.
        """
        ids = self._inner_ids(name, is_plain=True)
        if name != self.tokenizer.unk_token and self.tokenizer.convert_tokens_to_ids(name) in ids:
            raise DocumentError(
                f"{tokenizer_name(self.tokenizer)} reads '{excerpt(name)}' in a speaker's text as its special token; "
                "spell it otherwise"
            )
        return ids

    def _inner_ids(self, text: str, is_plain: bool = False) -> list[int]:
        """Return the ids of a text inside another one: after a line break, so that it gets no prefix space."""
        encode = self._plain_ids if is_plain else self._ids
        line_break = self._ids("\n")
        ids = encode(f"\n{text}")
        return ids[len(line_break) :] if ids[: len(line_break)] == line_break else encode(text)

    def _ids(self, text: str, **options: bool) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False, **options)
        return list(encoded["input_ids"])

    def _plain_ids(self, text: str) -> list[int]:
        """Return the ids of a text without added tokens; `split_special_tokens` leaves out only special ones."""
        if not self.tokenizer.is_fast:
            return self._ids(text, split_special_tokens=True)
        backend: Any = self.tokenizer.backend_tokenizer
        text = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        words = (
            [(text, None)] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(text)
        )
        return [token.id for word, _ in words for token in backend.model.tokenize(word)]


def placeholders(names: Mapping[str, Collection[str]], turns: Sequence[Turn]) -> dict[str, str]:
    """Return a character for each of the `names` of a role in its texts; no text has these characters."""
    texts = [(turn.role, "".join(run)) for turn in turns for is_image, run in _runs(turn) if not is_image]
    present = sorted({name for role, text in texts for name in names[role] if name in text})
    return dict(zip(present, unused_characters([text for _, text in texts]), strict=False))


def contents(turn: Turn, plain: Mapping[str, str]) -> list[str]:
    """Return the texts of a turn's pieces with a character in place of each name in `plain`.

    The longest name comes first. The character of a name over several pieces is in the first one.
    """
    pattern = re.compile("|".join(map(re.escape, sorted(plain, key=len, reverse=True))) or "(?!)")
    result: list[str] = []
    for is_image, texts in _runs(turn):
        characters = list("".join(texts))
        for match in () if is_image else pattern.finditer("".join(texts)):
            characters[match.start() : match.end()] = [plain[match[0]], *[""] * (len(match[0]) - 1)]
        ends = accumulate(map(len, texts), initial=0)
        result += ["".join(characters[start:end]) for start, end in pairwise(ends)]
    return result


def _runs(turn: Turn) -> Iterator[tuple[bool, list[str]]]:
    """Yield the texts of neighbouring pieces that are all images, or all not, with a flag for images."""
    for is_image, pieces in groupby(turn.pieces, key=lambda piece: piece.token_id is not None):
        yield is_image, [piece.text for piece in pieces]
