"""Recipes in files, and their problems."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamkit.errors import RecipeError, RecipeProblem
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry
from tiny import picture as tiny_picture, recipe as tiny_recipe

TRAIN: dict[str, Any] = {
    "trainable": ["visual_projector", "new_tokens"],
    "steps": 3,
    "batch_size": 2,
    "learning_rate": 2e-3,
}


def complete_recipe() -> dict[str, Any]:
    return {
        **tiny_recipe(**{"model.adapters": [{"target": "language_model", "rank": 2}]}),
        "data": [{"name": "pairs", "path": "pairs.jsonl", "weight": 2}],
        "loss": {"lm": 1, "denoising": 10, "condition_drop": 0.1},
        "train": {**TRAIN, "trainable": list(TRAIN["trainable"])},
    }


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The file of a valid recipe, `base.yaml`."""
    return write(tmp_path / "base.yaml", complete_recipe())


def write(path: Path, content: str | dict[str, Any]) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def problems(path: Path | str, registry: Registry, *overrides: str) -> tuple[RecipeProblem, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides, registry)
    return caught.value.problems


def only_problem(path: Path, registry: Registry, *overrides: str) -> RecipeProblem:
    reported = problems(path, registry, *overrides)
    assert len(reported) == 1, reported
    return reported[0]


def line_of(path: Path, text: str) -> str:
    """Return `file:line` of the first line of a file with `text`."""
    lines = path.read_text().splitlines()
    return f"{path}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return every value in a tree with its path, inner values first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, item in items for leaf in leaves(item, (*path, key))] + [(path, value)]


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of `tree` with `value` at `path`."""
    if not path:
        return value
    copy = deepcopy(tree)
    section = copy
    for step in path[:-1]:
        section = section[step]
    section[path[-1]] = value
    return copy


def write_pairs_recipe(folder: Path, **settings: object) -> Path:
    """Write a recipe of pairs of the tiny model, and their images; return its file."""
    (folder / "images").mkdir()
    for number in range(3):
        tiny_picture(number).save(folder / f"images/{number}.png")
        (folder / f"images/{number}.txt").write_text(f"picture {number}")
    train = {"trainable": ["dream_queries"], "steps": 10**5, "batch_size": 1, "log_every": 2, **settings}
    recipe = tiny_recipe(train=train, data=[{"name": "pairs", "path": "images"}])
    (folder / "tiny.yaml").write_text(json.dumps(recipe))
    return folder / "tiny.yaml"
