"""The number of documents that each data set of a mixture has before any block of places."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from typing import Final

from dreamkit.data.rare_sets import RareSets

BLOCK: Final = 4096  # places


class Shares:
    """The number of documents of each data set before a block: its share of the places, rounded up or down.

    The shares are laid end to end, and the ends rounded: each number is the difference of two rounded ends. A set with
    a document or more in each block never loses one by this. The other, rare sets lie first, with one common end, and
    `RareSets` divides their documents.

    Numbers are exact for any block: weights are fractions, as written (0.1 is a tenth), and sums are integers.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        fractions = [Fraction(repr(float(weight))) for weight in weights]
        scale = lcm(*(fraction.denominator for fraction in fractions))
        self._rates = [int(fraction * scale) * BLOCK for fraction in fractions]
        self._scale = sum(self._rates) // BLOCK
        self._rare = [number for number, rate in enumerate(self._rates) if rate < self._scale]
        self._frequent = [number for number, rate in enumerate(self._rates) if rate >= self._scale]
        self.rare_sets = RareSets([self._rates[number] for number in self._rare], self._scale)

    def counts(self, block: int) -> list[int]:
        """Return the number of documents of each data set in the blocks before `block`."""
        counts = [0] * len(self._rates)
        for number, count in zip(self._rare, self.rare_sets.counts(block), strict=True):
            counts[number] = count
        start, end = sum(counts), sum(self._rates[number] for number in self._rare)
        for number in self._frequent:
            end += self._rates[number]
            stop = (2 * block * end + self._scale) // (2 * self._scale)
            counts[number], start = stop - start, stop
        return counts
