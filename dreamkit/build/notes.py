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
    if train.warmup <= train.steps:
        return []
    return [
        f"note: {recipe.place('train.warmup')}: train.warmup: a warm-up of {count(train.warmup, 'step')} is longer "
        f"than the run ({count(train.steps, 'step')}), so the learning rate stays below {train.learning_rate:g}; "
        "lower it or raise train.steps"
    ]


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
