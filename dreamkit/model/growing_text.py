"""The text of a growing list of token ids, of which only the last ones are decoded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

STRIDE: Final = 16  # tokens


@dataclass(frozen=True)
class GrowingText:
    """A decoder of ids that grow. All of them are decoded together at first, and later those since a settled place.

    The text of ids before such a place is whole: no later token changes it. At least `STRIDE` settled ids, with some
    text, are decoded again before newer ones, since decoders treat the first ids differently: they may strip a space.

    Attributes:
        decode: returns the text of ids.
        first: number of ids that are not decoded again.
        settled: number of ids whose text is known to be whole.
        head: text of the settled ids when `first` was set.
        skipped: number of characters of `head` that the ids from `first` decode to.
    """

    decode: Callable[[Sequence[int]], str]
    first: int = 0
    settled: int = 0
    head: str = ""
    skipped: int = 0

    def of(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, which begin with the settled ones."""
        return self.head + self.decode(ids[self.first :])[self.skipped :]

    def settle(self, ids: Sequence[int], text: str) -> Self:
        """Return a decoder of ids that begin with these, whose `text` no later token changes."""
        if len(ids) - self.settled < STRIDE:
            return self
        tail = self.decode(ids[self.settled :])
        # without text, a decoder might still strip the space of the next token
        if not tail or not text.endswith(tail):
            return replace(self, settled=len(ids))
        return replace(self, first=self.settled, settled=len(ids), head=text, skipped=len(tail))
