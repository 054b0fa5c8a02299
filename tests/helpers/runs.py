"""Training runs on the tiny documents, and comparisons of their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import AdamW

import layouts
from dreamkit.document import Document
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.runs.log_entries import LogEntry
from dreamkit.training.run import TrainResult, train_recipe

REGISTRY = Registry.load()


def run(
    out: Path, recipe: Recipe | None = None, *, documents: list[Document] | None = None, **options: Any
) -> TrainResult:
    """Train on the tiny documents."""
    datasets = [layouts.TinyDocuments(documents)]
    return train_recipe(recipe or layouts.recipe(), REGISTRY, out, datasets=datasets, **options)


def training_losses(recipe: str, out: Path, settings: Sequence[str]) -> list[tuple[Any, Any, Any]]:
    """Train by a recipe file or a shipped recipe; return step and both losses of each line of the log."""
    entries: list[LogEntry] = []
    train_recipe(load_recipe(recipe, settings, REGISTRY), REGISTRY, out, on_log=entries.append)
    return [(entry["step"], entry["lm"], entry["denoising"]) for entry in entries]


def weights(model: DreamModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_identical(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name, tensor in actual.items() if not torch.equal(tensor, expected[name])] == []


@contextmanager
def recorded_states() -> Iterator[list[list[Tensor]]]:
    """Yield a list that gets the weights and the optimizer's state after each step in the block."""
    states: list[list[Tensor]] = []

    def step(optimizer: AdamW, step: Any = AdamW.step) -> None:
        step(optimizer)
        values = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        values += [value for state in optimizer.state.values() for value in state.values()]
        states.append([value.detach().clone() for value in values])

    with patch.object(AdamW, "step", step):
        yield states


class Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Callable[[LogEntry], None]:
    """Return an `on_log` that interrupts a run at `step`."""

    def on_log(entry: LogEntry) -> None:
        if entry["step"] == step:
            raise Interrupted

    return on_log


def kill_at(step: int, out: Path, recipe: Recipe) -> None:
    """Start a run and end it at `step` like a killed process, which saves nothing more."""
    with patch("dreamkit.training.run.add_resume_point"), suppress(Interrupted):
        run(out, recipe, on_log=interrupt_at(step))
