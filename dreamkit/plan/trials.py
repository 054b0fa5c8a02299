"""Plans of a recipe with other settings, and the search for the largest number that fits."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Final

from dreamkit.plan.memory import Device
from dreamkit.plan.meta_model import memory_before_step
from dreamkit.plan.plan import Plan, plan
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

# Share of a device's memory: the plan leaves out its context, workspaces and fragmentation.
USABLE: Final = 0.9

Settings = Mapping[str, Any]  # values by their keys in the recipe, such as `train.micro_batch`


class Trials:
    """Plans of a recipe with other settings, each made once.

    A plan follows a whole step, which takes seconds for a large model. Weights, states and gradients alone take
    a tenth of it.

    Attributes:
        plans: the plans so far, by their settings.
    """

    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        *,
        processes: int,
        machines: int = 1,
        images: int = 1,
        device: Device = "cuda",
        on_plan: Callable[[Settings], None] = lambda settings: None,
    ) -> None:
        """Plan for this kind of `device`; call `on_plan` with the settings before each plan."""
        self.recipe, self.registry, self.on_plan = recipe, registry, on_plan
        self.processes, self.machines = processes, machines
        self.images, self.device = images, device
        self.plans: dict[tuple[tuple[str, Any], ...], Plan] = {}

    def plan(self, settings: Settings) -> Plan:
        """Return the plan of a step of the recipe with `settings`.

        Raises:
            DreamkitError: the step cannot be planned.
        """
        key = tuple(sorted(settings.items()))
        if key not in self.plans:
            self.on_plan(settings)
            self.plans[key] = plan(
                changed(self.recipe, settings),
                self.registry,
                processes=self.processes,
                machines=self.machines,
                images=self.images,
                device=self.device,
            )
        return self.plans[key]

    def least(self, settings: Settings) -> int:
        """Return the bytes without activations, which the peak of a step with `settings` is not below.

        Raises:
            DreamkitError: the step cannot be planned.
        """
        recipe = changed(self.recipe, settings)
        return memory_before_step(
            recipe, self.registry, processes=self.processes, machines=self.machines
        ).peak


def changed(recipe: Recipe, settings: Settings) -> Recipe:
    """Return a recipe with `settings` in it; the places of its keys stay."""
    new: Recipe = _changed(recipe, settings)
    object.__setattr__(new, "places", recipe.places)
    return new


def _changed(section: Any, settings: Settings) -> Any:
    by_field: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        name, _, rest = key.partition(".")
        by_field.setdefault(name, {})[rest] = value
    changes = {
        name: inner[""] if "" in inner else _changed(getattr(section, name), inner)
        for name, inner in by_field.items()
    }
    return dataclasses.replace(section, **changes)


def largest(numbers: Sequence[int], peak: Callable[[int], float], limit: float) -> int:
    """Return the largest of the ascending `numbers` with a peak of at most `limit`, 0 for none.

    `peak` must not fall with the number. If it rises in a line, four calls are enough.
    """
    low, high = 0, len(numbers)  # so many fit: at least, at most

    def test(count: int) -> float:
        nonlocal low, high
        own = peak(numbers[count - 1])
        low, high = (max(low, count), high) if own <= limit else (low, min(high, count - 1))
        return own

    if low < high:
        most = test(high)
    if low < high:
        least = test(1)
    if low < high and isfinite(least):
        on_line = numbers[0] + (numbers[-1] - numbers[0]) * (limit - least) / (most - least)
        guess = min(max(bisect_right(numbers, on_line), low + 1), high)
        test(guess)
        if low < high:
            test(guess + 1 if low == guess else guess - 1)
    while low < high:
        test((low + high + 1) // 2)
    return numbers[low - 1] if low else 0
