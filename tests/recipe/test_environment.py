"""Environment variables in a recipe: only paths may use them, and no file that dreamkit writes holds their values."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

import tiny
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import CheckpointError
from dreamkit.recipe.loading import load_recipe, recipe_from_dict
from dreamkit.recipe.sections import plain
from dreamkit.registry.registry import Registry
from recipe_files import TRAIN, base as base, complete_recipe, only_problem, registry as registry, write
from saved_models import assert_equal, build_tiny

DATA = """
init: '${oc.env:NAME}/x'
train: {cache: '~/${oc.env:NAME}'}
data:
- {name: pairs, path: '${oc.env:DATA}/a.jsonl'}
- {name: pairs, path: '${data.0.path}.b', images: '${oc.env:UNSET,"/default"}'}
- {name: pairs, path: 'in/${oc.env:UNSET,"${oc.env:NAME}"}.jsonl'}
"""


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/secret")
    monkeypatch.setenv("NAME", "hunter2")
    monkeypatch.delenv("UNSET", raising=False)


def test_paths_are_expanded_and_stored_as_they_are_written(
    base: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(write(base.parent / "more.yaml", f"extends: base.yaml\n{DATA}")), (), registry)
    assert recipe.init == str(base.parent / "hunter2/x")
    assert recipe.train.cache == str(Path.home() / "hunter2")
    first, second, third = (section.config for section in recipe.data)
    assert (first.path, second.path, second.images) == (
        Path("/secret/a.jsonl"),
        Path("/secret/a.jsonl.b"),
        Path("/default"),
    )
    assert third.path == base.parent / "in/hunter2.jsonl"
    stored = recipe.to_dict()
    assert "/secret" not in str(stored) and "hunter2" not in str(stored)
    assert stored["data"][0]["path"] == "${oc.env:DATA}/a.jsonl"
    assert recipe_from_dict(stored, registry) == recipe
    for same in (pickle.loads(pickle.dumps(recipe.init)), copy.deepcopy(recipe.init)):
        assert same == recipe.init and plain(same) == stored["init"]
    assert dataclasses.replace(recipe, init="/other").to_dict() == {**stored, "init": "/other"}
    monkeypatch.setenv("DATA", "/elsewhere")
    assert recipe_from_dict(stored, registry).data[0].config.path == Path("/elsewhere/a.jsonl")
    monkeypatch.delenv("DATA")
    assert recipe_from_dict(stored, registry).to_dict() == stored


@pytest.mark.parametrize(
    "key",
    [
        "train.steps",
        "train.schedule",
        "train.trainable.0",
        "data.0.name",
        "data.0.direction",
        "model.language_model.name",
        "model.language_model.system_prompt",
        "model.language_model.config.hidden_act",
        "model.dream_queries",
        "model.special_tokens.dream_start",
        "generation.scheduler",
    ],
)
def test_an_environment_variable_outside_a_path_is_an_error_that_does_not_show_it(
    base: Path, registry: Registry, key: str
) -> None:
    problem = only_problem(base, registry, f"{key}=${{oc.env:NAME}}")
    assert problem.key == key and "only paths may use them" in problem.message
    assert "hunter2" not in problem.message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("${oc.env:UNSET}/a", "the environment variable UNSET is not set"),
        (
            '${oc.env:UNSET,"a"}/${oc.env:NAME,${oc.env:UNSET}}',
            "the environment variable UNSET is not set",
        ),
        ("${oc.env:UNSET,null}", "expected a text as default, got null"),
        ("${oc.env:}", "expected a name and at most a default"),
        ("${oc.env:UNSET,a,b}", "expected a name and at most a default"),
    ],
)
def test_a_path_whose_variable_is_not_set_is_an_error(
    base: Path, registry: Registry, text: str, reason: str
) -> None:
    problem = only_problem(base, registry, f"init={text}")
    assert problem.key == "init" and problem.message.startswith(f"cannot resolve '{text}' (string): {reason}")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (r"/\${oc.env:NAME}", "/${oc.env:NAME}"),
        (r"/\\${oc.env:NAME}", "/\\hunter2"),
        (r"/\\\${oc.env:NAME}", r"/\${oc.env:NAME}"),
        (r"/${oc.env:NAME}/\${oc.env:NAME}", "/hunter2/${oc.env:NAME}"),
        (r"/${train.steps}/\${oc.env:NAME,${train.steps}}", "/3/${oc.env:NAME,3}"),
    ],
)
def test_an_escaped_variable_is_a_text(base: Path, registry: Registry, text: str, path: str) -> None:
    recipe = load_recipe(str(base), [f"init={text}", "train.cache=${init}"], registry)
    assert recipe.init == recipe.train.cache == path
    assert recipe_from_dict(recipe.to_dict(), registry) == recipe


def test_a_folder_that_is_called_like_a_variable_is_a_folder(tmp_path: Path, registry: Registry) -> None:
    folder = tmp_path / "${oc.env:NAME}"
    sources = tiny.write_sources(folder / "sources")
    data: dict[str, Any] = {
        **tiny.on_sources(Path("./sources")),
        "init": "x",
        "data": complete_recipe()["data"],
    }
    recipe = load_recipe(
        str(write(folder / "recipe.yaml", data | {"train": TRAIN, "loss": {}})), (), registry
    )
    assert recipe.init == str(folder / "x") and recipe.data[0].config.path == folder / "pairs.jsonl"
    assert recipe.model.vision_encoder.config.pretrained.startswith(str(sources))
    assert recipe_from_dict(recipe.to_dict(), registry) == recipe


def test_the_hub_receives_no_environment_variable(base: Path, registry: Registry) -> None:
    data = complete_recipe()
    data["model"]["vision_encoder"] = {"name": "clip", "pretrained": "someone/${oc.env:NAME}"}
    problem = only_problem(write(base, data), registry)
    assert problem.key == "model.vision_encoder.pretrained"
    assert "expected a folder" in problem.message and "hunter2" not in problem.message


def test_a_checkpoint_on_a_source_with_a_variable_holds_none_of_its_value(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tiny.write_sources(tmp_path / "hidden-place")
    monkeypatch.setenv("NAME", str(sources))
    changed: dict[str, Any] = tiny.on_sources(Path("${oc.env:NAME}"))
    changed["model"]["adapters"] = [{"target": "language_model", "rank": 2}]
    model = build_tiny(changed)
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, folder)
    held = [path for path in folder.rglob("*") if path.is_file() and b"hidden-place" in path.read_bytes()]
    assert held == []
    assert_equal(load_checkpoint(folder)[0], model)
    monkeypatch.setenv("NAME", str(sources.rename(tmp_path / "moved")))
    assert_equal(load_checkpoint(folder)[0], model)
    monkeypatch.delenv("NAME")
    with pytest.raises(CheckpointError, match=r"\$\{oc\.env:NAME\}"):
        load_checkpoint(folder)
