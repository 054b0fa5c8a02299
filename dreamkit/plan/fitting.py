"""Smaller steps that fit into the memory of a device, found by plans of them."""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import Any, Final

from dreamkit.errors import DreamkitError
from dreamkit.plan.trials import USABLE, Trials, largest
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

PARTS_OF_LENGTH: Final = 8  # a shorter row has one to seven eighths of the length


def fitting_settings(
    recipe: Recipe,
    registry: Registry,
    memory: int,
    *,
    processes: int,
    machines: int = 1,
    rows: int,
    length: int,
) -> list[str]:
    """Return settings, such as `train.micro_batch=3`, each of which makes a step fit into `memory` bytes by its plan.

    The step has `rows` full rows of `length` tokens now, with an image each, and does not fit. A number is the largest
    that fits. Gradient checkpointing has fewer rows beside it only if nothing fits alone.

    Raises:
        DreamkitError: the step cannot be planned.
    """
    trials = Trials(recipe, registry, processes=processes, machines=machines)

    def peak(**train: Any) -> int:
        own = {"micro_batch": rows, "max_length": length} | train
        # as many documents as rows: one pass
        documents = {"global_batch": own["micro_batch"] * processes, "batch_size": None, "accumulation": None}
        return trials.plan({f"train.{name}": value for name, value in (documents | own).items()}).memory.peak

    def peak_of_length(number: int) -> float:
        try:
            return peak(max_length=number)
        except DreamkitError:  # a row has no room for an image
            return float("-inf")

    # at least a tenth less than now: if the plan sees no excess, its assumptions hold for other documents
    limit = USABLE * min(memory, peak())
    fewer_rows = range(1, rows)
    lengths = sorted({length * part // PARTS_OF_LENGTH for part in range(1, PARTS_OF_LENGTH)} - {0})
    found = []
    if fewer := largest(fewer_rows, lambda number: peak(micro_batch=number), limit):
        found.append(f"train.micro_batch={fewer}")
    if (shorter := largest(lengths, peak_of_length, limit)) and isfinite(peak_of_length(shorter)):
        found.append(f"train.max_length={shorter}")
    if not recipe.train.gradient_checkpointing:
        recomputed = partial(peak, gradient_checkpointing=True)
        if recomputed() <= limit:
            found.append("train.gradient_checkpointing=true")
        elif not found and (
            fewer := largest(fewer_rows, lambda number: recomputed(micro_batch=number), limit)
        ):
            found.append(f"train.gradient_checkpointing=true with train.micro_batch={fewer}")
    return found
