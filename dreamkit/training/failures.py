"""Failures of a step whose causes a user can change, in words that say what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dreamkit.data.workers import original_errors
from dreamkit.errors import TrainingError

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"  # torch has no type for it


@contextmanager
def with_remedies() -> Iterator[None]:
    """Raise torch's errors of too little memory and of killed workers with a remedy.

    Raises:
        TrainingError: such an error; torch's own is its cause.
    """
    try:
        with original_errors():
            yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_ALLOCATOR in text:
            raise TrainingError(
                "out of memory; lower train.micro_batch or train.max_length, or set train.gradient_checkpointing: true"
            ) from error
        raise
