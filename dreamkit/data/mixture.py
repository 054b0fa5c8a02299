"""A mixture of data sets: the document at any place of a run, from the seed and the place alone."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from dreamkit.data.order import SetOrder
from dreamkit.data.permutation import shuffle_in_place, stream_key
from dreamkit.data.shares import BLOCK, Shares
from dreamkit.errors import TrainingError, count, describe_value, near_hint
from dreamkit.recipe.sections import SHUFFLES, Recipe, Shuffle

if TYPE_CHECKING:
    from dreamkit.data.dataset import Dataset
    from dreamkit.document import Document

_BLOCKS, _SETS = range(2)  # streams of random numbers of a seed


class Mixture:
    """Documents of several data sets in proportion to their weights: `mixture[place]`, for any place from 0 on.

    The document at a place depends on the seed, the weights and the sizes of the data sets alone. So a run can resume
    at any place, and processes need no common state. Memory does not depend on the number of documents.

    - Before each multiple of 4096 places, a data set has its share of them, rounded up or down.
    - Within a block of 4096 places, the data sets come in random order.
    - A data set repeats no document before all of its documents have been used. Each such epoch has its own order.

    A place costs about 5 microseconds, and the first one of a block 5 milliseconds. With three or more sets that have
    less than one document in a block on average, the first place may take longer: 3 microseconds for each document of
    these sets in three times the places that the rarest of them needs for one.

    Args:
        data_sets: the data sets.
        weights: a positive number for each data set.
        seed: any integer; each one has an order of its own.
        shuffle: the order of the documents of all data sets, or of each one: `full` permutes them. `blocks` permutes
            chunks of 256 neighbours, and the documents of each 16 chunks; it suits storage that is slow at random
            reads. `none` keeps the order of the data set.
        length: number of places; None: no end.

    Raises:
        TrainingError: no data set, an empty one, a weight that is not positive and finite, or another `shuffle`.
    """

    key: Final = "data"  # of its data sets in a recipe

    def __init__(
        self,
        data_sets: Sequence[Dataset],
        weights: Sequence[float],
        seed: int = 0,
        *,
        shuffle: Shuffle | Sequence[Shuffle] = "full",
        length: int | None = None,
    ) -> None:
        self.data_sets = list(data_sets)
        self.seed = seed
        self.length = length
        shuffles = [shuffle] * len(self.data_sets) if isinstance(shuffle, str) else list(shuffle)
        if not self.data_sets:
            raise TrainingError("no training data: name at least one data set under data")
        for name, values in (("weight", weights), ("shuffle", shuffles)):
            if len(values) != len(self.data_sets):
                sets = count(len(self.data_sets), "data set")
                raise TrainingError(f"expected a {name} for each of {sets}, got {len(values)}")
        for number, (data_set, weight, each) in enumerate(zip(data_sets, weights, shuffles, strict=True)):
            where = f"data.{number} ({type(data_set).__name__})"
            if len(data_set) == 0:
                raise TrainingError(f"{where}: no documents; check its path or remove it")
            if not isinstance(weight, numbers.Real) or not 0 < weight < float("inf"):
                raise TrainingError(
                    f"{where}: expected a positive, finite weight, got {describe_value(weight)}; change it or remove "
                    "the data set"
                )
            if each not in SHUFFLES:
                raise TrainingError(
                    f"{where}: expected shuffle to be one of {', '.join(SHUFFLES)}, got {describe_value(each)}"
                    + near_hint(each, SHUFFLES)
                )
        self._shares = Shares(weights)
        self._orders = [
            SetOrder(len(data_set), each, stream_key(seed, _SETS, number))
            for number, (data_set, each) in enumerate(zip(data_sets, shuffles, strict=True))
        ]
        self._block: tuple[int, list[tuple[int, int]]] | None = None

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("this mixture has no length: it has a document at every place")
        return self.length

    def __getitem__(self, place: int) -> Document:
        """Return the document at `place`.

        Raises:
            IndexError: `place` is negative, or not below the length of the mixture.
            DocumentError: the document cannot be read.
        """
        if self.length is not None and not 0 <= place < self.length:
            raise IndexError(f"expected a place from 0 to {self.length - 1}, got {place}")
        number, index = self.place(place)
        return self.data_sets[number][index]

    def place(self, place: int) -> tuple[int, int]:
        """Return the number of the data set at `place`, and the index of the document in it.

        `place` may be any integer from 0 on, also beyond the length of the mixture.

        Raises:
            IndexError: `place` is negative.
        """
        place = operator.index(place)
        if place < 0:
            raise IndexError(f"expected a place from 0 on, got {place}")
        number, position = divmod(place, BLOCK)
        block = self._block
        if block is None or block[0] != number:
            block = self._block = number, self._turns(number)
        data_set, turn = block[1][position]
        return data_set, self._orders[data_set][turn]

    def _turns(self, block: int) -> list[tuple[int, int]]:
        """Return the data set at each place of a block, and its turn: the documents of that set before this one."""
        turns, after = self._shares.counts(block), self._shares.counts(block + 1)
        sets = [
            number
            for number, (start, end) in enumerate(zip(turns, after, strict=True))
            for _ in range(end - start)
        ]
        shuffle_in_place(sets, stream_key(self.seed, _BLOCKS, block))
        places = []
        for number in sets:
            places.append((number, turns[number]))
            turns[number] += 1
        return places


def run_mixture(recipe: Recipe, data_sets: Sequence[Dataset], global_batch: int) -> Mixture:
    """Return the documents of a whole run in their order; each update has the next `global_batch`."""
    train, sections = recipe.train, recipe.data
    return Mixture(
        data_sets,
        [section.weight for section in sections],
        train.seed,
        shuffle=[section.shuffle for section in sections],
        length=train.steps * global_batch,
    )
