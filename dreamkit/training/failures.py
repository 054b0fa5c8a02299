"""Failures of a step whose causes a user can change, in words that say what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dreamkit.errors import TrainingError

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"  # torch has no type for it
_WORKER = "DataLoader worker (pid"  # raised by torch's handler of SIGCHLD, anywhere in a step


@contextmanager
def with_remedies() -> Iterator[None]:
    """Raise torch's errors of too little memory and of killed workers with a remedy.

    Raises:
        TrainingError: such an error; torch's own is its cause.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_ALLOCATOR in text:
            raise TrainingError(
                "out of memory; lower train.batch_size or train.max_length, or set train.gradient_checkpointing: true"
            ) from error
        if text.startswith(_WORKER):
            raise TrainingError(
                "a process that reads data was killed, as a system does that is out of memory; lower train.workers"
            ) from error
        raise
