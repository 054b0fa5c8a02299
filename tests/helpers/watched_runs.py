"""Runs that draw prompts and evaluate held-out documents.

`torchrun` runs this file in each process of `test_watching_together.py`: `watched_runs.py FOLDER`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image as PIL

import layouts
from dreamkit.distributed import join, world_size
from dreamkit.recipe.sections import HeldOutSection, Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training import drawings
from dreamkit.training.run import TrainResult, train_recipe

PROMPTS = ("a", "", "a much longer prompt, so that its row of the batch is wider", "two dogs")
EVERY: dict[str, Any] = {"draw_every": 1, "prompts": PROMPTS, "eval_every": 1}
FLOAT64: dict[str, Any] = {"precision": "float64", "steps": 2}
# by the number of processes, whose shares of documents and prompts differ
RUNS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"float64": FLOAT64, "float32": {}, "half": {"precision": "bfloat16"}},
    2: {
        "float64": FLOAT64,
        "unwatched": FLOAT64 | {"draw_every": 0, "prompts": (), "eval_every": 0},
        "none": {"precision": "float64", "sharding": "none", "micro_batch": 1, "packing": False},
        "offloaded": {
            "precision": "float64",
            "cpu_offload": True,
            "unsharded": ("image_decoder", "vision_encoder"),
        },
        "half": {"precision": "bfloat16"},
    },
    3: {
        "float64": {"precision": "float64"},
        "float32": {},
        "one": {"precision": "float64", "prompts": PROMPTS[:1]},
    },
}


def watched_recipe(*, condition_drop: float = 0.5, **settings: Any) -> Recipe:
    """Return a recipe of one step, or several, each followed by a drawing of `PROMPTS` and an evaluation."""
    settings = {"steps": 1, "global_batch": 3, **settings}
    watch = {name: settings.pop(name, value) for name, value in EVERY.items()}
    recipe = layouts.recipe(condition_drop=condition_drop, **settings)
    held_out = (HeldOutSection(recipe.data[0].name, recipe.data[0].config),) if watch["eval_every"] else ()
    return replace(recipe, train=replace(recipe.train, **watch), held_out=held_out)


def watched_run(out: Path, recipe: Recipe, **options: Any) -> TrainResult:
    """Train on the tiny documents, and evaluate on them."""
    options = {"datasets": [layouts.TinyDocuments()]} | options
    if recipe.held_out:
        options.setdefault("held_out", [layouts.TinyDocuments()])
    return train_recipe(recipe, Registry.load(), out, **options)


def held_out_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]


def pixels(file: Path) -> np.ndarray:
    return np.asarray(PIL.open(file)).astype(int)


def assert_same_view(actual: Path, expected: Path, bound: float, levels: int = 1) -> None:
    """Compare the held-out losses and the drawings of a run with those that another run has, too.

    The drawings differ by at most `levels` of 255.
    """
    entries, others = held_out_log(actual), held_out_log(expected)
    assert entries
    for entry, other in zip(entries, others, strict=False):
        assert entry == {name: pytest.approx(value, rel=bound, abs=0) for name, value in other.items()}
    files = sorted(path.relative_to(actual) for path in actual.glob("drawings/*/*"))
    assert files
    for file in files:
        assert np.abs(pixels(actual / file) - pixels(expected / file)).max() <= levels, file


def main(folder: Path) -> None:
    join()
    with patch.object(drawings, "AT_ONCE", 1):  # some processes are idle in the last pass
        for name, settings in RUNS[world_size()].items():
            watched_run(folder / name, watched_recipe(**settings))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
