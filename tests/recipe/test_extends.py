"""Recipes that extend others, and the names of recipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreamkit.build.fit import fit
from dreamkit.errors import RecipeError
from dreamkit.recipe.loading import draft_recipe, load_recipe
from dreamkit.registry.kinds import ShippedRecipe
from dreamkit.registry.registry import Registry
from recipe_files import base as base, line_of, only_problem, problems, registry as registry, write


def test_extending_merges_sections_and_replaces_lists(base: Path, registry: Registry) -> None:
    path = write(
        base.parent / "more.yaml",
        "extends: base.yaml\nloss: {denoising: 3}\nmodel: {vision_encoder: {layer: -1}}\n"
        "train: {trainable: [dream_queries]}\n",
    )
    recipe = load_recipe(str(path), (), registry)
    assert (recipe.loss.denoising, recipe.loss.condition_drop) == (3, 0.1)
    assert recipe.train.trainable == ("dream_queries",) and recipe.train.steps == 3
    assert recipe.model.vision_encoder.config.layer == -1
    assert recipe.model.vision_encoder.config.config["patch_size"] == 8


def test_later_bases_override_earlier_ones(base: Path, registry: Registry) -> None:
    write(base.parent / "a.yaml", "train: {steps: 10, seed: 10}\n")
    write(base.parent / "b.yaml", "train: {steps: 20, seed: 20, workers: 1}\n")
    path = write(base.parent / "c.yaml", "extends: [base.yaml, b.yaml, a.yaml]\ntrain: {seed: 30}\n")
    train = load_recipe(str(path), (), registry).train
    assert (train.steps, train.seed, train.workers) == (10, 30, 1)


def test_naming_another_part_replaces_its_section(base: Path, registry: Registry) -> None:
    config = "{hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2, "
    config += "image_size: 16, patch_size: 8}"
    path = write(
        base.parent / "siglip.yaml",
        f"extends: base.yaml\nmodel:\n  vision_encoder: {{name: siglip, config: {config}}}\n"
        "  condition_projector: {name: mlp}\n",
    )
    recipe = load_recipe(str(path), (), registry)
    assert recipe.model.vision_encoder.config.config["num_hidden_layers"] == 2  # the base has 3
    assert recipe.model.condition_projector.config.bias is True  # the base's linear one has none


def test_a_shipped_recipe_is_found_by_name(base: Path) -> None:
    registry = Registry([], [ShippedRecipe("tiny/base", base, "tiny 1.0", "tiny")])
    with pytest.raises(RecipeError) as caught:  # this registry has no parts, but the recipe is found
        load_recipe("tiny/base", (), registry)
    assert {problem.where.rpartition(":")[0] for problem in caught.value.problems} == {str(base)}
    extending = write(base.parent / "own.yaml", "extends: tiny/bse\n")
    (problem,) = (p for p in problems(extending, registry) if p.key == "extends")
    assert problem.where == f"{extending}:1" and "did you mean 'tiny/base'?" in problem.message


def test_a_base_may_be_in_the_home_folder(
    base: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "elsewhere" / "more.yaml", "extends: ~/base.yaml\nloss: {denoising: 3}\n")
    assert load_recipe(str(path), (), registry).loss.denoising == 3


def test_a_cycle_is_reported_with_its_links(tmp_path: Path, registry: Registry) -> None:
    a = write(tmp_path / "a.yaml", "extends: b.yaml\n")
    b = write(tmp_path / "b.yaml", "# loops\nextends: a.yaml\n")
    problem = next(p for p in problems(a, registry) if p.key == "extends")
    assert problem.where == f"{b}:2"
    assert "a.yaml -> b.yaml -> a.yaml" in problem.message


def test_no_source_is_reported_missing_if_a_base_is_missing(tmp_path: Path, registry: Registry) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("extends: missing.yaml\nmodel:\n  image_decoder: {name: sdxl}\n")
    draft, problems = draft_recipe(str(file), (), registry)
    assert draft is not None and draft.model.image_decoder is None
    assert [problem.key for problem in problems + fit(draft, registry).problems] == ["extends"]


def test_a_missing_base_hides_no_other_problem(tmp_path: Path, registry: Registry) -> None:
    path = write(tmp_path / "a.yaml", "extends: nowhere.yaml\ntrain: {stepz: 3}\n")
    reported = problems(path, registry)
    assert [(p.where, p.key) for p in reported] == [(f"{path}:1", "extends"), (f"{path}:2", "train.stepz")]


def test_a_problem_is_reported_in_its_own_file(base: Path, registry: Registry) -> None:
    broken = base.read_text().replace("steps: 3", "steps: three")
    write(base, broken)
    path = write(base.parent / "more.yaml", "extends: base.yaml\nloss: {denoising: much}\n")
    reported = problems(path, registry)
    assert {(p.where, p.key) for p in reported} == {
        (line_of(base, "steps: three"), "train.steps"),
        (f"{path}:2", "loss.denoising"),
    }


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("~", "expected the name of a recipe, got null"),
        ("~nosuchuser/x.yaml", "invalid path '~nosuchuser/x.yaml'"),
        (300 * "x", "File name too long"),
    ],
)
def test_an_invalid_base_is_reported(tmp_path: Path, registry: Registry, extends: str, message: str) -> None:
    path = write(tmp_path / "bad.yaml", f"# first\nextends: {extends}\n")
    (problem,) = (p for p in problems(path, registry) if p.key == "extends")
    assert problem.where == f"{path}:2" and message in problem.message


def test_a_folder_is_not_a_recipe(base: Path, registry: Registry) -> None:
    folder = base.parent / "folder.yaml"
    folder.mkdir()
    for name in (str(folder), str(folder)[:-2]):
        (problem,) = problems(name, registry)
        assert f"did you mean '{folder}'" not in problem.message
    assert f"'{folder}' is a folder, not a regular file" in problems(folder, registry)[0].message


def test_a_pipe_is_not_a_recipe_and_is_never_waited_for(base: Path, registry: Registry) -> None:
    pipe = base.parent / "pipe.yaml"
    os.mkfifo(pipe)
    extending = write(base.parent / "over.yaml", "extends: pipe.yaml\n")
    for path in (pipe, extending):
        assert f"'{pipe}' is a named pipe, not a regular file" in problems(path, registry)[0].message
    assert f"'{os.devnull}' is a device, not a regular file" in problems(os.devnull, registry)[0].message


@pytest.mark.parametrize("name", [300 * "x", "~nosuchuser/x.yaml", "x\0.yaml"])
def test_an_invalid_file_name_is_reported(registry: Registry, name: str) -> None:
    (problem,) = problems(name, registry)
    assert (problem.where, problem.key) == ("command line", "recipe")
    assert "invalid path" in problem.message and len(problem.message) < 400


def test_a_missing_file_is_reported_with_the_nearest_name(base: Path, registry: Registry) -> None:
    (problem,) = problems(base.parent / "bsae.yaml", registry)
    assert problem.where == "command line" and f"did you mean '{base}'?" in problem.message


@pytest.mark.parametrize("key", ["base", "_base_", "defaults", "inherit", "extend"])
def test_another_name_of_extends_is_one_problem(base: Path, registry: Registry, key: str) -> None:
    path = write(base.parent / "other.yaml", f"train: {{steps: 3}}\n{key}: base.yaml\n")
    problem = only_problem(path, registry)
    assert (problem.where, problem.message) == (f"{path}:2", f"unknown key '{key}'; did you mean 'extends'?")
