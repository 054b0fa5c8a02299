"""The table of settings in docs/plan.md has every shipped stage of full size, and is current."""

from __future__ import annotations

import re

import pytest

from dreamkit.plan.trials import changed
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry
from stage_settings import BEGIN, END, PAGE, STAGES, table

REGISTRY = Registry.load()
STORED = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def test_each_shipped_stage_is_in_the_table_or_needs_the_memory_of_one_there() -> None:
    shipped = {name for name in REGISTRY.recipes() if re.match(r"dreamllm/.*/stage\d", name)}
    assert shipped == {name for stage, others in STAGES.items() for name in (stage, *others)}
    assert re.findall(r"^\| `(.*?)` ", STORED, re.MULTILINE) == [*STAGES]
    for stage, others in STAGES.items():
        recipe = load_recipe(stage, (), REGISTRY)
        same = {"data": recipe.data} | {
            f"train.{key}": getattr(recipe.train, key) for key in ("steps", "learning_rate", "global_batch")
        }
        for other in others:
            assert changed(load_recipe(other, (), REGISTRY), same) == recipe


@pytest.mark.full
def test_the_table_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert table().strip() == STORED, "rewrite it with: python tests/helpers/stage_settings.py"
