"""The batches of each update of a run, as one process trains on them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset as TorchDataset

from dreamkit.data.batch import Batch, Collator
from dreamkit.data.samples import Samples
from dreamkit.data.workers import WorkerStart
from dreamkit.distributed import rank, world_size
from dreamkit.recipe.sections import TrainSection


class Updates(TorchDataset[list[Batch]]):
    """The batches of this process for each update of the weights, `updates[number]`, from 0 on.

    Attributes:
        samples: the sequences of the run by place.
        collator: the function that makes batches of them.
        train: the section of the recipe.
    """

    def __init__(self, samples: Samples, collator: Collator, train: TrainSection) -> None:
        self.samples = samples
        self.collator = collator
        self.train = train
        self._rank, self._processes = rank(), world_size()

    def __len__(self) -> int:
        return self.train.steps

    def __getitem__(self, number: int) -> list[Batch]:
        """Return the batches of an update, read and packed.

        Raises:
            DocumentError, TrainingError: as `Samples` and `Collator.share`.
        """
        batches = range(number * self.train.accumulation, (number + 1) * self.train.accumulation)
        return [self.collator.share(self.samples.__getitems__(self._places(batch))) for batch in batches]

    def _places(self, batch: int) -> range:
        """Return the places of this process's batch of this number: processes take whole batches in turn."""
        start = (batch * self._processes + self._rank) * self.train.batch_size
        return range(start, start + self.train.batch_size)

    def loader(self, first: int) -> DataLoader[list[Batch]]:
        """Return the updates from number `first` on, read by `train.workers` processes, in their order."""
        return DataLoader(
            self,
            sampler=range(first, len(self)),
            batch_size=None,
            collate_fn=_as_is,
            num_workers=self.train.workers,
            worker_init_fn=WorkerStart(),
            pin_memory=torch.cuda.is_available(),  # a batch is copied to the device while the host continues
        )


def _as_is(batches: Any) -> Any:
    return batches
