"""A mixture of data sets, with random access to its documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.utils.data import Dataset as TorchDataset

from dreamkit.data.dataset import Dataset
from dreamkit.document import Document
from dreamkit.errors import TrainingError
from dreamkit.recipe.sections import Recipe

BLOCK: Final = 2**14  # documents


class Mixture(TorchDataset[Document]):
    """A mixture of `length` documents, each from a data set sampled in proportion to its weight.

    Document i depends on `seed` and i alone: a run can resume at any document, and processes can share the mixture.
    A data set repeats no document before all of its documents have been used; then it starts in a new order.

    Raises:
        TrainingError: no data set, an empty one, or a weight that is not positive and finite.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], length: int, seed: int) -> None:
        if not datasets:
            raise TrainingError("no training data: name at least one data set under data")
        for number, (dataset, weight) in enumerate(zip(datasets, weights, strict=True)):
            where = f"data.{number} ({type(dataset).__name__})"
            if len(dataset) == 0:
                raise TrainingError(f"{where}: no documents; check its path or remove it")
            if not 0 < weight < float("inf"):
                raise TrainingError(
                    f"{where}: expected a positive, finite weight, got {weight}; change it or remove the data set"
                )
        self.datasets = list(datasets)
        self.length = length
        self.seed = seed
        self._choices = _Choices(weights, seed)
        self._orders: dict[int, tuple[int, torch.Tensor]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < self.length:
            raise IndexError(f"expected a document from 0 to {self.length - 1}, got {index}")
        choice, document = self.place(index)
        return self.datasets[choice][document]

    def place(self, index: int) -> tuple[int, int]:
        """Return the number of the data set of document `index`, and the document's index in it."""
        choice, turn = self._choices[index]
        dataset = self.datasets[choice]
        epoch, position = divmod(turn, len(dataset))
        if choice not in self._orders or self._orders[choice][0] != epoch:
            order = torch.randperm(len(dataset), generator=_generator(self.seed, choice, epoch))
            self._orders[choice] = epoch, order
        return choice, int(self._orders[choice][1][position])


def run_mixture(recipe: Recipe, datasets: Sequence[Dataset], processes: int) -> Mixture:
    """Return the documents of a whole run in their order, for all processes: each takes whole batches in turn."""
    train, weights = recipe.train, [section.weight for section in recipe.data]
    documents = train.steps * train.accumulation * train.batch_size * processes
    return Mixture(datasets, weights, documents, train.seed)


class _Choices:
    """The data set of each document, and its turn: the number of earlier documents of the same data set.

    One block of documents is in memory, so a run of any length takes the same memory. Blocks are computed from the
    first one on: the time to reach document i is about i * 50 ns, far less than that to train on them.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.shares = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        self.seed = seed
        self._start()

    def __getitem__(self, index: int) -> tuple[int, int]:
        block, position = divmod(index, BLOCK)
        if block < self._block:
            self._start()
        while self._block < block:
            self._compute_next()
        choice = int(self._sets[position])
        return choice, int(self._before[choice] + (self._sets[:position] == choice).sum())

    def _start(self) -> None:
        self._random = _generator(self.seed)
        self._block = -1
        self._sets = torch.empty(0, dtype=torch.int64)
        self._before = torch.zeros(len(self.shares), dtype=torch.int64)  # documents of each data set

    def _compute_next(self) -> None:
        self._before += self._sets.bincount(minlength=len(self.shares))
        uniform = torch.rand(BLOCK, dtype=torch.float64, generator=self._random)
        self._sets = torch.searchsorted(self.shares, uniform * self.shares[-1], right=True)
        self._sets.clamp_(max=len(self.shares) - 1)
        self._block += 1


def _generator(seed: int, *stream: int) -> torch.Generator:
    """Return a generator of its own for each stream of a seed."""
    mixed = seed
    for number in stream:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)
