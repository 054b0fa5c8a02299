"""The held-out documents of a run: the same ones, in the same order, in every evaluation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from dreamkit.data.seeds import stream_seed

if TYPE_CHECKING:
    from dreamkit.data.dataset import Dataset


class HeldOutOrder:
    """Up to `most` documents of each data set, at even distances, one set after the other.

    The seed is not that of training, so that no place here shares random numbers with one there.
    """

    key: Final = "held_out"  # of its data sets in a recipe

    def __init__(self, data_sets: Sequence[Dataset], most: int, seed: int) -> None:
        self.data_sets = list(data_sets)
        self.seed = stream_seed(seed, 0, "held-out")
        self._ends = [*accumulate(min(most, len(each)) for each in data_sets)]

    def __len__(self) -> int:
        return self._ends[-1]

    def place(self, place: int) -> tuple[int, int]:
        """Return the number of the data set at `place`, and the index of the document in it."""
        number = bisect_right(self._ends, place)
        start = self._ends[number - 1] if number else 0
        chosen = self._ends[number] - start
        return number, (place - start) * len(self.data_sets[number]) // chosen
