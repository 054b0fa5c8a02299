"""Overrides of recipe keys on the command line."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry
from recipe_files import base as base, line_of, only_problem, problems, registry as registry, write
from tiny import recipe as tiny_recipe


def test_overrides_change_values_of_every_type(base: Path, registry: Registry) -> None:
    recipe = load_recipe(
        str(base),
        [
            "train.learning_rate=2e-5",
            "data.0.weight=3",
            "train.trainable=[dream_queries]",
            "train.packing=false",
            "model.condition_projector={name: mlp, depth: 3}",
            "model.adapters.0.rank=4",
            "loss={lm: 2}",
        ],
        registry,
    )
    assert recipe.train.learning_rate == 2e-5 and recipe.train.packing is False
    assert recipe.data[0].weight == 3
    assert recipe.train.trainable == ("dream_queries",)
    assert recipe.model.condition_projector.config.depth == 3
    assert recipe.model.adapters[0].rank == 4
    assert (recipe.loss.lm, recipe.loss.denoising) == (2, 10)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_overrides_of_one_part_does_not_matter(
    base: Path, registry: Registry, reverse: bool
) -> None:
    overrides = ["model.condition_projector.name=mlp", "model.condition_projector.depth=1"]
    recipe = load_recipe(str(base), overrides[::-1] if reverse else overrides, registry)
    assert recipe.model.condition_projector.config.depth == 1


@pytest.mark.parametrize("override", ["data.0={name: digits}", "data.0.name=digits"])
def test_naming_another_data_set_replaces_its_section(base: Path, registry: Registry, override: str) -> None:
    recipe = load_recipe(str(base), ["data.0.documents={reading: 1}", override], registry)
    assert recipe.data[0].name == "digits" and recipe.data[0].weight == 1


@pytest.mark.parametrize("override", ["data.0={name: pairs, direction: read}", "data.0.direction=read"])
def test_naming_the_same_data_set_keeps_its_section(base: Path, registry: Registry, override: str) -> None:
    recipe = load_recipe(str(base), [override], registry)
    assert recipe.data[0].config.direction == "read" and recipe.data[0].weight == 2


@pytest.mark.parametrize(
    ("keys", "replacement"),
    [
        (["model.condition_projector.depth=5"], "model.condition_projector={name: mlp, hidden_dim: 7}"),
        (["model.condition_projector.depth=5"], "model={condition_projector: {name: mlp, hidden_dim: 7}}"),
        (["data.0.weight=5", "data.0.direction=read"], "data=[{name: pairs, path: x}]"),
        (["data.0.weight=5", "data.0.documents.reading=1"], "data.0={name: digits}"),
    ],
)
def test_no_order_of_overrides_loses_a_key(
    base: Path, registry: Registry, keys: list[str], replacement: str
) -> None:
    recipes = [load_recipe(str(base), order, registry) for order in permutations([*keys, replacement])]
    assert all(recipe == recipes[0] for recipe in recipes)
    assert "5" in str((recipes[0].data[0].weight, recipes[0].model.condition_projector))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_key_that_the_other_component_lacks_is_reported(
    base: Path, registry: Registry, reverse: bool
) -> None:
    overrides = ["model.condition_projector.depht=5", "model.condition_projector={name: mlp}"]
    problem = only_problem(base, registry, *(overrides[::-1] if reverse else overrides))
    assert problem.key == "model.condition_projector.depht" and "did you mean 'depth'?" in problem.message


def test_overrides_are_applied_in_order(base: Path, registry: Registry) -> None:
    overrides = [
        "data=[{name: pairs, path: other.jsonl, direction: read}]",
        "data.0.weight=3",
        "data.0.direction=draw",
        "model.adapters=[]",
    ]
    recipe = load_recipe(str(base), overrides, registry)
    assert recipe.data[0].config.path == Path.cwd() / "other.jsonl"
    assert (recipe.data[0].weight, recipe.data[0].config.direction) == (3, "draw")
    assert recipe.model.adapters == ()


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("steps", "steps", "expected key=value, such as train.steps=100, or the name of a recipe"),
        ("with/sdxl", "recipe", "with/sdxl'; did you mean 'dreamllm/with/sdxl'?"),
        ("=3", "=3", "expected key=value"),
        ("train..steps=3", "train..steps=3", "expected key=value"),
        ("train.steps=[", "train.steps", "invalid YAML"),
        ("train.steps=", "train.steps", "expected an integer, got null"),
        ("train.step=3", "train.step", "did you mean 'steps'?"),
        (
            "train.steps.now=3",
            "train.steps.now",
            "expected train.steps to be a section, got 3 (integer) at {place}",
        ),
        ("data={}", "data", "expected a list of sections with name, weight, shuffle, got a section"),
        ("data.0={}", "data.0", "an empty section changes nothing; set its keys"),
        ("init.0=x", "init.0", "init has no items; set the whole list"),
        ("train.steps=0x" + 5000 * "f", "train.steps", "expected a number of at most 80 digits"),
        ("train.steps=" + 5000 * "9", "train.steps", "expected a number of at most 80 digits"),
        (
            "train.learning_rate=1e+30",
            "train.learning_rate",
            "expected more than 0 and at most 100, got 1e+30",
        ),
        ("init=~nosuchuser/x", "init", "invalid path '~nosuchuser/x'"),
        ("data.0.path=~nosuchuser/x", "data.0.path", "invalid path '~nosuchuser/x'"),
        ("init=" + 300 * "x", "init", "File name too long"),
        ("data.0.path=" + 300 * "x", "data.0.path", "File name too long"),
        ('init="\\ud800"', "init", "got the lone surrogate"),
        ("data.1.weight=3", "data.1", "expected an index from 0 to 0 of the list data, got '1'"),
        ("data.first.weight=3", "data.first", "of the list data, got 'first'"),
        (
            "model.image_decoder.name=stable-difusion",
            "model.image_decoder.name",
            "did you mean 'stable-diffusion'?",
        ),
    ],
)
def test_an_invalid_override_is_reported(
    base: Path, registry: Registry, override: str, key: str, message: str
) -> None:
    problem = only_problem(base, registry, override)
    assert (problem.where, problem.key) == ("command line", key)
    assert message.format(place=line_of(base, "steps: 3")) in problem.message
    assert len(problem.message) < 600 and problem.message.encode()


def test_an_override_does_not_hide_an_invalid_earlier_one(base: Path, registry: Registry) -> None:
    messages = {
        problem.key: problem.message for problem in problems(base, registry, "train=3", "train.steps=4")
    }
    assert "got 3 (integer)" in messages["train"]
    assert "expected train to be a section, got 3 (integer) at command line" in messages["train.steps"]


def test_an_item_of_a_missing_list_is_reported(tmp_path: Path, registry: Registry) -> None:
    path = write(tmp_path / "model.yaml", tiny_recipe())
    problem = only_problem(path, registry, "model.adapters.0.rank=3")
    assert (problem.where, problem.key) == ("command line", "model.adapters.0")
    assert "model.adapters has no items; set the whole list, as in model.adapters=[...]" in problem.message


def test_a_value_that_the_shell_split_is_one_problem(base: Path, registry: Registry) -> None:
    problem = only_problem(base, registry, "model.visual_projector={name:", "mlp,", "depth:", "3}")
    assert (problem.where, problem.key) == ("command line", "model.visual_projector")
    assert "put it in quotes: 'model.visual_projector={name: mlp, depth: 3}'" in problem.message
    parts = ["train.trainable=[visual_projector,", "new_tokens]", "train.seed=3"]
    assert only_problem(base, registry, *parts).key == "train.trainable"


@pytest.mark.parametrize("key", ["model.visual_projector", "model.pooled_projector", "data.0"])
def test_a_name_in_place_of_a_section_is_written_as_one(base: Path, registry: Registry, key: str) -> None:
    problem = only_problem(base, registry, f"{key}=mlp")
    assert problem.key == key
    assert problem.message == "expected a section with name, got 'mlp' (string); write {name: mlp}"


def test_several_texts_for_one_key_are_an_error(base: Path, registry: Registry) -> None:
    problem = only_problem(base, registry, "data.0.path=a/1.jsonl", "data.0.path=a/2.jsonl")
    assert (problem.where, problem.key) == ("command line", "data.0.path")
    assert problem.message == "expected one text, got 2; remove the others, or put braces {...} in quotes"


def test_the_last_of_several_numbers_holds(base: Path, registry: Registry) -> None:
    assert load_recipe(str(base), ["train.steps=4", "train.steps=9"], registry).train.steps == 9


def test_settings_of_one_section_merge(base: Path, registry: Registry) -> None:
    recipe = load_recipe(str(base), ["loss={lm: 2}", "loss={denoising: 3}"], registry)
    assert (recipe.loss.lm, recipe.loss.denoising) == (2, 3)
