"""Failures of a step whose causes a user can change, in words that say what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dreamkit.distributed import local_processes, world_size
from dreamkit.errors import TrainingError, count
from dreamkit.plan.fitting import fitting_settings
from dreamkit.plan.sizes import format_bytes
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"  # torch has no type for it


@contextmanager
def with_remedies(memory_remedy: Callable[[], str]) -> Iterator[None]:
    """Raise torch's errors of too little memory with a remedy.

    Raises:
        TrainingError: such an error, with its notes; torch's own is its cause.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_ALLOCATOR in text:
            with_remedy = TrainingError(f"out of memory{memory_remedy()}")
            for note in getattr(error, "__notes__", ()):
                with_remedy.add_note(note)
            raise with_remedy from error
        raise


def memory_remedy(
    recipe: Recipe, registry: Registry | None, device: torch.device, shape: tuple[int, int] | None
) -> str:
    """Return the rest of an error about too little memory: the last forward pass of this shape, and what would fit.

    Settings that fit are those that the plan estimates for the device's memory. A CPU has none of its own.
    """
    checkpointing = recipe.train.gradient_checkpointing
    place, remedies = (
        "",
        [
            "lower train.micro_batch or train.max_length",
            *([] if checkpointing else ["set train.gradient_checkpointing: true"]),
        ],
    )
    if shape is not None:
        rows, length = shape
        place = (
            f" in a forward pass of {count(rows, 'row')} of {count(length, 'token')}, gradient checkpointing "
            f"{'on' if checkpointing else 'off'}"
        )
        if device.type == "cuda" and registry is not None:
            memory = torch.cuda.get_device_properties(device).total_memory
            place += f", on a device of {format_bytes(memory)}"
            machines = max(1, world_size() // local_processes())
            try:
                fitting = fitting_settings(
                    recipe,
                    registry,
                    memory,
                    processes=world_size(),
                    machines=machines,
                    rows=rows,
                    length=length,
                )
            except Exception:  # a part that cannot be planned; the error is that of the memory
                fitting = None
            if fitting:
                return f"{place}; by its plan, a step fits with {' or '.join(fitting)}"
            if fitting is not None:
                remedies = [
                    "no shorter row or smaller pass fits by its plan; train fewer parts, adapters of them, or on more "
                    "devices: `dreamkit plan --memory` lists what would help"
                ]
    return f"{place}; {', or '.join(remedies)}"
