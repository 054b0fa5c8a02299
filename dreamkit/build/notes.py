"""Notes about a valid recipe whose settings may not do what its author expects. A note stops nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dreamkit.errors import RecipeProblem, count
from dreamkit.parts.specs import LanguageSpec
from dreamkit.recipe.sections import Recipe


def recipe_notes(recipe: Recipe) -> list[str]:
    """Return notes that hold on every machine."""
    train = recipe.train
    warmups = {"train.warmup": (train.warmup, train.learning_rate)} | {
        f"train.groups.{number}.warmup": (group.warmup, group.learning_rate or train.learning_rate)
        for number, group in enumerate(train.groups)
        if group.warmup is not None
    }
    notes = [
        f"note: {recipe.place(key)}: {key}: a warm-up of {count(warmup, 'step')} is longer than the run "
        f"({count(train.steps, 'step')}), so the learning rate stays below {rate:g}; lower it or raise train.steps"
        for key, (duration, rate) in warmups.items()
        if (warmup := train.in_steps(duration)) > train.steps
    ]
    if train.schedule == "wsd" and (decay := train.in_steps(train.decay or 0)) > train.steps:
        notes.append(
            f"note: {recipe.place('train.decay')}: train.decay: a decay of {count(decay, 'step')} is longer than the "
            f"run ({count(train.steps, 'step')}), so the learning rate falls from its warm-up on; lower it or raise "
            "train.steps"
        )
    return notes


def language_notes(
    recipe: Recipe, language: LanguageSpec | None, problems: Sequence[RecipeProblem]
) -> list[str]:
    """Return the note that the language model refuses every conversation, if no problem contains the reason."""
    reason = None if language is None else language.conversation_problem
    if reason is None or any(reason in problem.message for problem in problems):
        return []
    key = "model.language_model"
    return [f"note: {recipe.place(key)}: {key}: conversations are refused: {reason}"]


def machine_notes(recipe: Recipe) -> list[str]:
    """Return notes about this machine. A recipe may be checked on another machine than the one that trains."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun on this machine
    workers = recipe.train.workers * processes
    if workers <= (cores := usable_cores()):
        return []
    share = f" in each of {count(processes, 'process')}" if processes > 1 else ""
    return [
        f"note: {recipe.place('train.workers')}: train.workers: {count(recipe.train.workers, 'worker')}{share} share "
        f"{count(cores, 'core')} of this machine; more workers than cores read data no faster"
    ]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
