"""Smaller steps that fit into the memory of a device, found by plans of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from dreamkit.errors import DreamkitError
from dreamkit.plan.plan import plan
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

USABLE: Final = (
    0.9  # share of a device's memory: the plan leaves out its context, workspaces and fragmentation
)
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

    def peak(**settings: Any) -> int:
        own = {"micro_batch": rows, "max_length": length} | settings
        # as many documents as rows: one pass
        documents = {"global_batch": own["micro_batch"] * processes, "batch_size": None, "accumulation": None}
        changed = replace(recipe, train=replace(recipe.train, **documents | own))
        return plan(changed, registry, processes=processes, machines=machines).memory.peak

    def fits(**settings: Any) -> bool:
        try:
            return peak(**settings) <= limit
        except DreamkitError:  # a row has no room for an image
            return False

    # at least a tenth less than now: if the plan sees no excess, its assumptions hold for other documents
    limit = USABLE * min(memory, peak())

    def largest(most: int, **settings: Callable[[int], Any]) -> int:
        """Return the largest number up to `most` that fits, 0 for none; memory grows with it."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            is_enough = fits(**{name: value(middle) for name, value in settings.items()})
            low, high = (middle, high) if is_enough else (low, middle - 1)
        return low

    found = []
    if fewer := largest(rows - 1, micro_batch=lambda number: number):
        found.append(f"train.micro_batch={fewer}")
    if eighths := largest(PARTS_OF_LENGTH - 1, max_length=lambda number: length * number // PARTS_OF_LENGTH):
        found.append(f"train.max_length={length * eighths // PARTS_OF_LENGTH}")
    if not recipe.train.gradient_checkpointing:
        if fits(gradient_checkpointing=True):
            found.append("train.gradient_checkpointing=true")
        elif not found and (
            fewer := largest(
                rows - 1, micro_batch=lambda number: number, gradient_checkpointing=lambda _: True
            )
        ):
            found.append(f"train.gradient_checkpointing=true with train.micro_batch={fewer}")
    return found
