"""Comparison of recipes: a resumed run must be the same run, and a model given to one the model of its recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamkit.distributed import world_size
from dreamkit.errors import TrainingError
from dreamkit.recipe.sections import Recipe
from dreamkit.training.trainer import processes

# settings that a resumed run may have otherwise than the run before it: none of them changes what is learned
# (a cache holds what would be computed without it, which is compared at every start)
MAY_CHANGE = ("train.log_every", "train.save_every", "train.workers", "train.cache")


def compare_run(point: Path, then: Recipe | None, now: Recipe) -> None:
    """A resumed run must be the same run."""
    assert then is not None, "a loaded checkpoint has its recipe"
    differing = _differing(then, now)
    if differing:
        raise TrainingError(
            f"{point} was written by another recipe; resume with the same one, or start a new run from it with "
            f"init={point}:\n" + "\n".join(differing)
        )
    if processes(point) != world_size():
        raise TrainingError(
            f"{point} was written by {processes(point)} processes, but {world_size()} are here now, which would "
            "train on other batches with other noise; start as many as there were (torchrun --nproc-per-node), or "
            f"a new run from it with init={point}"
        )


def compare_model(of_model: Recipe | None, recipe: Recipe) -> None:
    """A checkpoint is rebuilt from its recipe, so that must be what the model is."""
    differing = _differing(of_model, recipe, under="model.") if of_model is not None else []
    if differing:
        raise TrainingError(
            "the model was built by another recipe than the one it is to be trained by; give both the same `model`:\n"
            + "\n".join(differing)
        )


def _differing(then: Recipe, now: Recipe, under: str = "") -> list[str]:
    """A line for each setting under a key that differs, and that has a say in what is learned."""
    before, after = dict(_flat(then.to_dict())), dict(_flat(now.to_dict()))
    return [
        f"  {key}: {before.get(key)!r} there, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if key.startswith(under)
        and before.get(key) != after.get(key)
        and key not in (*MAY_CHANGE, "model.language_model.tokenizer")
    ]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values of a nested recipe."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{number}]")
    else:
        yield key, value
