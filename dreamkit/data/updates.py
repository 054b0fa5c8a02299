"""The batches of each update of the weights: the documents of one process, packed together, by forward pass."""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset as TorchDataset

from dreamkit.data.batch import Batch, Collator
from dreamkit.data.samples import Samples
from dreamkit.data.sequence import Sequence
from dreamkit.data.workers import WorkerStart
from dreamkit.recipe.sections import TrainSection


class Updates(TorchDataset[list[Batch]]):
    """The batches of one process for each update of the weights, `updates[number]`, from 0 on.

    Update u of G documents has the places from u G on. The W processes take them in turn: process r has u G + r, then
    each W-th place after it. There may be none. The last update ends with the samples.

    Args:
        samples: the sequences of the run by place.
        collator: the function that makes batches of them.
        train: the section of the recipe.
        global_batch: number G of documents of an update, over all processes.
        rank: number r of the process.
        processes: number W of processes.
    """

    def __init__(
        self,
        samples: Samples,
        collator: Collator,
        train: TrainSection,
        global_batch: int,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.samples = samples
        self.collator = collator
        self.train = train
        self.global_batch = global_batch
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return self.train.steps

    def __getitem__(self, number: int) -> list[Batch]:
        """Return the batch of each forward pass of an update, read and packed.

        Raises:
            DocumentError: a document cannot be used, and the policy is to stop.
            StorageError: a disk or network fails.
            TrainingError: a process that reads data has too little shared memory.
        """
        first = number * self.global_batch
        end = min(first + self.global_batch, len(self.samples))
        sequences = self.samples.__getitems__(range(first + self.rank, end, self.processes))
        return [self.collator.share(part) for part in divide(sequences, self.collator, self.train)]

    def loader(self, first: int = 0) -> DataLoader[list[Batch]]:
        """Return the updates from number `first` on, in order, read by `train.workers` processes."""
        # An update of several passes may be large; a process then reads the next one while one waits.
        ahead = 1 if self.train.passes(-(-self.global_batch // self.processes)) > 1 else 2
        return DataLoader(
            self,
            sampler=range(first, len(self)),
            batch_size=None,
            collate_fn=_as_is,
            num_workers=self.train.workers,
            prefetch_factor=ahead if self.train.workers else None,
            worker_init_fn=WorkerStart(),
            pin_memory=torch.cuda.is_available(),  # a batch is copied to the device while the host continues
        )


def divide(sequences: Sequences[Sequence], collator: Collator, train: TrainSection) -> list[list[Sequence]]:
    """Return the sequences of each forward pass: those of its rows, as many in each pass as in the others."""
    if not sequences:
        return []
    if train.passes(len(sequences)) == 1:  # there are no more rows
        return [list(sequences)]
    rows = collator.rows(sequences)
    passes = train.passes(len(rows))
    ends = [len(rows) * number // passes for number in range(passes + 1)]
    return [
        [sequences[index] for index in sorted(index for row in rows[start:end] for index in row)]
        for start, end in pairwise(ends)
    ]


def _as_is(batches: Any) -> Any:
    return batches
