"""Comparison of recipes: of a resumed run with the run before it, and of a model with the recipe to train it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamkit.distributed import world_size
from dreamkit.errors import TrainingError, count
from dreamkit.recipe.sections import Recipe
from dreamkit.recipe.written import shown_setting
from dreamkit.training.trainer import processes

# Settings that a resumed run may change, as they do not change its losses. A cache too:
# every start compares it with the model.
MAY_CHANGE = ("train.log_every", "train.save_every", "train.workers", "train.cache")


def compare_run(point: Path, then: Recipe | None, now: Recipe) -> None:
    """Check that a resumed run is the run that wrote the resume point `point`.

    Raises:
        TrainingError: another recipe, or another number of processes.
    """
    assert then is not None, "a loaded checkpoint has a recipe"
    differing = _differing(then, now)
    if differing:
        raise TrainingError(
            f"{point} is of a run with another recipe; resume with the same one or start a new run with init={point}:\n"
            + "\n".join(differing)
        )
    if processes(point) != world_size():
        raise TrainingError(
            f"{point}: expected {count(processes(point), 'process')}, as before, got {world_size()}, which would train "
            "on other batches with other noise; start the same number (torchrun --nproc-per-node) or start a new run "
            f"with init={point}"
        )


def compare_model(of_model: Recipe | None, recipe: Recipe) -> None:
    """Check that a model has the `model` section of the recipe to train it: its checkpoint is rebuilt from that.

    Raises:
        TrainingError: the sections differ.
    """
    differing = _differing(of_model, recipe, under="model.") if of_model is not None else []
    if differing:
        raise TrainingError(
            "the model was built from another recipe than the one to train it; use the same `model` section:\n"
            + "\n".join(differing)
        )


def _differing(then: Recipe, now: Recipe, under: str = "") -> list[str]:
    """Return a line for each different setting whose key starts with `under`, except those that may change."""
    before, after = dict(_flat(then.to_dict())), dict(_flat(now.to_dict()))
    return [
        f"  {key}: was {shown_setting(before.get(key))}, is {shown_setting(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if key.startswith(under)
        and before.get(key) != after.get(key)
        and key not in (*MAY_CHANGE, "model.language_model.tokenizer")
    ]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and plain values of a nested recipe."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{number}]")
    else:
        yield key, value
