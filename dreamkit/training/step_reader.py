"""The reading of a step: the batches of this process, and the numbers that the processes need of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dreamkit.data.batch import Batch
from dreamkit.data.skipped import Skipped
from dreamkit.data.updates import Updates
from dreamkit.data.workers import original_errors
from dreamkit.training.agreement import Agreement
from dreamkit.training.data_wait import DataWait
from dreamkit.training.skipped_log import SkippedLog


class ReadStep(NamedTuple):
    """The input of a step.

    Attributes:
        batches: those of this process; every process has the same number.
        counts: labels and images to draw (2,) of all processes, on the CPU.
        is_written: flag: all processes have written their files of an unfinished resume point.
    """

    batches: list[Batch]
    counts: Tensor
    is_written: bool


class StepReader:
    """A reader of one step after the other; the processes meet in each, once.

    Args:
        updates: the batches of this process.
        device: the device of this process.
        agreement: the meeting of the processes.
        skipped: the log of documents that were skipped.

    Attributes:
        data_wait: the share of time spent waiting for data.
    """

    def __init__(
        self, updates: Updates, device: torch.device, agreement: Agreement, skipped: SkippedLog
    ) -> None:
        self.updates, self.agreement, self.skipped = updates, agreement, skipped
        self.data_wait = DataWait(device)

    def read(self, updates: Iterator[list[Batch]], step: int, *, is_written: bool) -> ReadStep:
        """Return the input of `step`, from 1; `is_written` is the flag of this process.

        Raises:
            Interrupted: a signal came, in any process.
            DocumentError: a document cannot be read.
            TrainingError: too many documents are bad.
        """

        with self.data_wait.waiting():  # the processes meet here: for the slowest one's data, too
            batches, skipped, numbers = read_update(
                updates,
                self.agreement,
                lambda: self.idle,
                numbers=lambda batches: [*_counts(batches), float(is_written)],
            )
        self.skipped.add(step, skipped, sum(batch.cut for batch in batches))
        if (error := self.skipped.limit_error(step)) is not None:
            self.agreement.stop(error)
        labels, draws, are_written = zip(*numbers, strict=True)
        counts = torch.tensor([sum(labels), sum(draws)], dtype=batches[0].counts.dtype)
        return ReadStep(batches, counts, all(are_written))

    @cached_property
    def idle(self) -> Batch:
        """A batch of no document."""
        return self.updates.collator.collate([])


def read_update(
    updates: Iterator[list[Batch]],
    agreement: Agreement,
    idle: Callable[[], Batch],
    numbers: Callable[[list[Batch]], list[float]] = lambda batches: [],
) -> tuple[list[Batch], list[Skipped], list[list[float]]]:
    """Return the next batches of this process, and skipped documents and `numbers` of the batches of each process.

    Under FSDP, all processes run the same forward passes: a part that one skips would wait forever. So a process with
    fewer batches than another one gets `idle()` for the others. Every process must call this function.

    Raises:
        Interrupted: a signal came, in any process.
        DocumentError: a document cannot be read.
    """

    def next_update() -> list[Batch]:
        with original_errors():
            return next(updates)

    batches, skipped, every = agreement.call(
        next_update,
        remarks=lambda batches: [document for batch in batches for document in batch.skipped],
        numbers=lambda batches: [len(batches), *numbers(batches)],
    )
    most = max(int(passes) for passes, *_ in every)
    padding = [idle() for _ in range(most - len(batches))]
    return [*batches, *padding], skipped, [own for _, *own in every]


def _counts(batches: Sequence[Batch]) -> list[float]:
    """Return the numbers of labels and of images to draw, which are on the host."""
    counts: list[float] = (
        torch.stack([batch.counts for batch in batches]).sum(0, dtype=torch.float64).tolist()
    )
    return counts
