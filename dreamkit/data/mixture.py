"""A mixture of data sets, with random access to its documents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset as TorchDataset

from dreamkit.data.dataset import Dataset
from dreamkit.document import Document
from dreamkit.errors import TrainingError
from dreamkit.recipe.sections import Recipe


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
        self.seed = seed
        shares = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        uniform = torch.rand(length, dtype=torch.float64, generator=_generator(seed))
        self.choices = torch.searchsorted(shares, uniform * shares[-1], right=True).clamp(
            max=len(datasets) - 1
        )
        self.turns = torch.zeros(
            length, dtype=torch.int64
        )  # how many earlier documents are of the same data set
        for number in range(len(datasets)):
            chosen = self.choices == number
            self.turns[chosen] = torch.arange(int(chosen.sum()))
        self._orders: dict[int, tuple[int, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.choices)

    def __getitem__(self, index: int) -> Document:
        choice = int(self.choices[index])
        dataset = self.datasets[choice]
        epoch, position = divmod(int(self.turns[index]), len(dataset))
        if choice not in self._orders or self._orders[choice][0] != epoch:
            order = torch.randperm(len(dataset), generator=_generator(self.seed, choice, epoch))
            self._orders[choice] = epoch, order
        return dataset[int(self._orders[choice][1][position])]


def run_mixture(recipe: Recipe, datasets: Sequence[Dataset], processes: int) -> Mixture:
    """Return the documents of a whole run in their order, for all processes: each takes whole batches in turn."""
    train, weights = recipe.train, [section.weight for section in recipe.data]
    documents = train.steps * train.accumulation * train.batch_size * processes
    return Mixture(datasets, weights, documents, train.seed)


def _generator(seed: int, *stream: int) -> torch.Generator:
    """Return a generator of its own for each stream of a seed."""
    mixed = seed
    for number in stream:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)
