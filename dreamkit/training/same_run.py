"""Comparison of recipes: of a resumed run with the run before it, and of a model with the recipe to train it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from dreamkit.checkpoints.manifest import Manifest
from dreamkit.data.fingerprint import fingerprint_differences
from dreamkit.errors import CheckpointError, TrainingError, count
from dreamkit.recipe.flat import flat
from dreamkit.recipe.generation_section import GenerationSection
from dreamkit.recipe.sections import Recipe
from dreamkit.recipe.written import shown_setting
from dreamkit.storage.urls import Url
from dreamkit.training.resume_state import RunState
from dreamkit.training.schedule import has_same_rates

# Settings that a resumed run may change, as they do not change its losses. A cache too:
# every start compares it with the model. The action at bad documents is the same for the good ones before.
MAY_CHANGE = (
    *("train.log_every", "train.save_every", "train.workers", "train.cache", "train.micro_batch"),
    *("train.on_error", "train.max_skipped", "train.keep_last", "train.keep_every", "train.on_save_error"),
    *("train.sharding", "train.unsharded", "train.cpu_offload", "train.trackers"),
    *("train.on_spike", "train.spike_factor"),  # they decide from the resume point on
    *("train.draw_every", "train.prompts", "train.eval_every", "train.eval_documents", "held_out"),
    *(f"generation.{field.name}" for field in dataclasses.fields(GenerationSection)),
)


def compare_run(point: Path, state: RunState, then: Recipe, now: Recipe) -> None:
    """Check that a resumed run is the run that wrote the resume point `point`, or a longer or shorter one.

    Paths of data may differ if the resume point has fingerprints of its data, which `compare_data` compares.

    Raises:
        TrainingError: another recipe, or fewer steps than `point` has.
    """
    if now.train.global_batch is not None:
        then = _with_global_batch(then, global_batch(state, then))
    _compare_recipes(point, then, now, may_move=bool(state.data), except_for={"train.steps"})
    if now.train.steps < state.step:
        raise TrainingError(
            f"{point}: expected train.steps of at least {state.step}, the steps of this resume point, got "
            f"{now.train.steps}; raise train.steps"
        )


def global_batch(state: RunState, then: Recipe) -> int:
    """Return the number of documents of an update of the run that wrote a resume point with `state` and its recipe."""
    return state.global_batch or then.train.update_documents(state.processes)


def _with_global_batch(then: Recipe, documents: int) -> Recipe:
    """Return an earlier recipe with `global_batch` in the place of `batch_size` and `accumulation`."""
    train = dataclasses.replace(then.train, global_batch=documents, batch_size=None, accumulation=None)
    return dataclasses.replace(then, train=train)


def is_longer(checkpoint: Path, now: Recipe) -> bool:
    """Return True if a recipe has more steps than the finished run with its checkpoint; False for a damaged one."""
    try:
        train = Manifest.read(checkpoint, verify=False).recipe.get("train")
    except CheckpointError:
        return False
    steps = train.get("steps") if isinstance(train, dict) else None
    return isinstance(steps, int) and steps < now.train.steps


def steps_note(state: RunState, then: Recipe, now: Recipe) -> str | None:
    """Return a line about another number of steps than that of the run before, or None."""
    before, after, schedule = then.train.steps, now.train.steps, now.train.schedule
    if before == after:
        return None
    note = f"train.steps was {before}, is {after}; continuing after step {state.step}"
    if has_same_rates(then.train, now.train, state.step):
        return note
    return (
        f"{note}; from there on the learning rate has the {schedule} schedule over {count(after, 'step')}, before that "
        f"over {before}, so the result is not that of one run of {count(after, 'step')}"
    )


def order_note(point: Path, state: RunState) -> str | None:
    """Return a line about the documents of a run whose resume point has no fingerprints of its data, or None."""
    if state.data:
        return None
    return (
        f"{point}: an earlier release wrote it, which had another order of documents; weights, optimizer and schedule "
        f"continue, and the documents from step {state.step + 1} on are those of today's order"
    )


def changed_settings(then: Recipe, now: Recipe) -> str | None:
    """Return a line about the settings of a resumed run that may change and have, except for its steps; or None."""
    before, after = (_values(recipe, MAY_CHANGE) for recipe in (then, now))
    changed = [
        f"{key} was {shown_setting(before[key])}, is {shown_setting(after[key])}"
        for key in MAY_CHANGE
        if before[key] != after[key]
    ]
    return "; ".join(changed) or None


def compare_finished(checkpoint: Path, then: Recipe | None, now: Recipe) -> None:
    """Check that a finished run, with its checkpoint, has the recipe to resume; paths of data may differ.

    Raises:
        TrainingError: another recipe.
    """
    assert then is not None, "a loaded checkpoint has a recipe"
    documents = now.train.global_batch
    if documents is not None and then.train.global_batch is None:
        of_each = then.train.update_documents(processes=1)
        # the earlier run had this global batch with some number of processes
        then = _with_global_batch(then, documents) if documents % of_each == 0 else then
    _compare_recipes(checkpoint, then, now, may_move=True)


def _compare_recipes(
    folder: Path, then: Recipe, now: Recipe, *, may_move: bool, except_for: Collection[str] = ()
) -> None:
    moved = data_paths(then) | data_paths(now) if may_move else set()
    differing = _differing(then, now, moved | set(except_for))
    if differing:
        them, differ = ("it", "differs") if len(differing) == 1 else ("them", "differ")
        raise TrainingError(
            f"{folder}: {count(len(differing), 'setting')} of the recipe {differ} from the run to resume; set {them} "
            f"back, or start a new run from its weights with --out NEW init={folder}:\n"
            + "\n".join(differing)
        )


def compare_data(point: Path, state: RunState, now: Sequence[dict[str, str]]) -> None:
    """Check that the data of a resumed run has the fingerprints in its resume point, if that has some.

    Raises:
        TrainingError: the data has changed.
    """
    differing = fingerprint_differences(state.data, now) if state.data else []
    if differing:
        raise TrainingError(
            f"{point}: the data has changed since; restore it, or continue on the changed data with --resume "
            "--changed-data:\n" + "\n".join(f"  {line}" for line in differing)
        )


def compare_model(of_model: Recipe | None, recipe: Recipe) -> None:
    """Check that a model has the `model` section of the recipe to train it: its checkpoint is rebuilt from that.

    Raises:
        TrainingError: the sections differ.
    """
    differing = _differing(of_model, recipe, set(), under="model.") if of_model is not None else []
    if differing:
        raise TrainingError(
            "the model was built from another recipe than the one to train it; use the same `model` section:\n"
            + "\n".join(differing)
        )


def _differing(then: Recipe, now: Recipe, allowed: set[str], under: str = "") -> list[str]:
    """Return a line for each different setting whose key starts with `under`, except those that may change.

    `allowed` are keys that may change in this run.
    """
    before, after = dict(flat(then.to_dict())), dict(flat(now.to_dict()))
    return [
        f"  {key}: was {shown_setting(before.get(key))}, is {shown_setting(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if key.startswith(under)
        and before.get(key) != after.get(key)
        and key.partition("[")[0] not in MAY_CHANGE
        and key not in (*allowed, "model.language_model.tokenizer")
        and not (key == "train.too_long" and before.get(key) == "stop")  # it had no long document yet
    ]


def data_paths(recipe: Recipe) -> set[str]:
    """Return the keys of all paths in the data sections of a recipe, also of held-out data."""
    return {
        f"{key}[{number}].{field.name}"
        for key, configs in (
            ("data", [section.config for section in recipe.data]),
            ("held_out", [section.config for section in recipe.held_out]),
        )
        for number, config in enumerate(configs)
        for field in dataclasses.fields(config)
        if field.metadata.get("path") or isinstance(getattr(config, field.name), Path | Url)
    }


def _values(recipe: Recipe, keys: Collection[str]) -> dict[str, Any]:
    """Return the plain values at dotted keys; a list is one value."""
    plain = recipe.to_dict()
    return {key: reduce(lambda section, name: section[name], key.split("."), plain) for key in keys}
