"""The text of a growing list of token ids, of which only the last ones are decoded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

STRIDE: Final = 16  # tokens


class GrowingText:
    """A decoder of ids that grow. All of them are decoded together at first, and later those since a settled place.

    The text of ids before such a place is whole: no later token changes it. At least `STRIDE` settled ids, with some
    text, are decoded again before newer ones, since decoders treat the first ids differently: they may strip a space.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._first = 0  # number of ids that are not decoded again
        self._settled = 0  # number of ids whose text is whole
        self._head = ""  # text of the settled ids when `_first` was set
        self._skipped = 0  # characters of the ids from `_first` that `_head` has

    def of(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, which begin with the settled ones."""
        return self._head + self._decode(ids[self._first :])[self._skipped :]

    def settle(self, ids: Sequence[int], text: str) -> None:
        """Note that no token after `ids` changes their text."""
        if len(ids) - self._settled < STRIDE:
            return
        tail = self._decode(ids[self._settled :])
        # without text, a decoder might still strip the space of the next token
        if tail and text.endswith(tail):
            self._first, self._head, self._skipped = self._settled, text, len(tail)
        self._settled = len(ids)
