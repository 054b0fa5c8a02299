"""An error about too little memory names settings with which a step fits by its plan."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

import alive
from dreamkit.plan.fitting import fitting_settings
from dreamkit.plan.plan import plan
from dreamkit.plan.trials import USABLE
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.failures import memory_remedy

REGISTRY = Registry.load()
ROWS, LENGTH = 3, 64


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return alive.recipe({"trainable": alive.ALL, "max_length": LENGTH})


def peak(recipe: Recipe, rows: int = ROWS, **settings: Any) -> int:
    own = {"global_batch": rows, "micro_batch": rows, "batch_size": None, "accumulation": None} | settings
    return plan(replace(recipe, train=replace(recipe.train, **own)), REGISTRY).memory.peak


def fitting(recipe: Recipe, memory: float) -> list[str]:
    return fitting_settings(recipe, REGISTRY, int(memory), processes=1, rows=ROWS, length=LENGTH)


def test_the_largest_numbers_that_fit_are_named(recipe: Recipe) -> None:
    memory = (peak(recipe, rows=2) + 1) / USABLE
    assert memory < peak(recipe)
    found = fitting(recipe, memory)
    assert found[0] == "train.micro_batch=2"
    length = int(found[1].removeprefix("train.max_length="))
    assert peak(recipe, max_length=length) <= USABLE * memory < peak(recipe, max_length=length + LENGTH // 8)
    is_enough = peak(recipe, gradient_checkpointing=True) <= USABLE * memory
    assert ("train.gradient_checkpointing=true" in found) == is_enough


def test_less_than_now_is_named_if_the_plan_sees_no_excess(recipe: Recipe) -> None:
    assert fitting(recipe, 1e15)[0] in ("train.micro_batch=1", "train.micro_batch=2")


def remedy(recipe: Recipe, memory: float) -> str:
    properties = SimpleNamespace(total_memory=int(memory))
    with patch("torch.cuda.get_device_properties", return_value=properties):
        return memory_remedy(recipe, REGISTRY, torch.device("cuda"), (ROWS, LENGTH))


def test_the_error_names_pass_and_settings(recipe: Recipe) -> None:
    text = remedy(recipe, peak(recipe, rows=2) / USABLE + 2)
    assert re.fullmatch(
        r" in a forward pass of 3 rows of 64 tokens, gradient checkpointing off, on a device of [0-9.]+ [KM]iB; "
        r"by its plan, a step fits with train\.micro_batch=2 or train\.max_length=\d+.*",
        text,
    )
    assert "; no shorter row or smaller pass fits by its plan; train fewer parts" in remedy(recipe, 1000)


def test_a_plan_that_fails_leaves_the_error_about_memory(recipe: Recipe) -> None:
    with patch("dreamkit.training.failures.fitting_settings", side_effect=RuntimeError("no meta kernel")):
        assert "; lower train.micro_batch or train.max_length, or set train." in remedy(recipe, 1e9)


def test_the_plan_is_that_of_the_machines_of_the_run(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        patch("dreamkit.training.failures.world_size", return_value=4),
        patch("dreamkit.training.failures.fitting_settings", return_value=[]) as fitting,
    ):
        remedy(recipe, 1e9)
    assert (fitting.call_args.kwargs["processes"], fitting.call_args.kwargs["machines"]) == (4, 2)
