"""Loading of valid recipes: defaults, places, interpolations, sources, earlier keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreamkit.build.fit import fit
from dreamkit.errors import RecipeError
from dreamkit.recipe.loading import load_recipe, recipe_from_dict
from dreamkit.registry.registry import Registry
from recipe_files import (
    base as base,
    complete_recipe,
    line_of,
    only_problem,
    problems,
    registry as registry,
    write,
)
from tiny import recipe as tiny_recipe


def test_a_valid_recipe_is_read_with_defaults(base: Path, registry: Registry) -> None:
    recipe = load_recipe(str(base), (), registry)
    assert recipe.model.dream_queries == 3
    assert recipe.model.vision_encoder.name == "clip"
    assert recipe.model.vision_encoder.config.layer == -2
    assert recipe.model.adapters[0].rank == 2 and recipe.model.adapters[0].alpha == 32
    assert recipe.data[0].weight == 2 and recipe.data[0].config.path == base.parent / "pairs.jsonl"
    assert recipe.train.trainable == ("visual_projector", "new_tokens") and recipe.train.schedule == "cosine"
    assert isinstance(recipe.loss.denoising, float)
    assert fit(recipe, registry).problems == []


def test_plain_values_are_read_as_the_same_recipe(base: Path, registry: Registry) -> None:
    recipe = load_recipe(str(base), (), registry)
    plain = json.loads(json.dumps(recipe.to_dict()))
    assert recipe_from_dict(plain, registry) == recipe
    assert load_recipe(str(write(base.parent / "plain.yaml", plain)), (), registry) == recipe


def test_a_model_without_training_is_a_recipe(tmp_path: Path, registry: Registry) -> None:
    recipe = load_recipe(str(write(tmp_path / "model.yaml", tiny_recipe())), (), registry)
    assert recipe.train.trainable == () and recipe.data == ()


def test_recipe_from_dict_is_strict(registry: Registry) -> None:
    data = complete_recipe()
    data["train"]["stepz"] = 3
    with pytest.raises(
        RecipeError, match=r"dreamkit\.json: train\.stepz: unknown key 'stepz'; did you mean 'steps'\?"
    ):
        recipe_from_dict(data, registry, where="dreamkit.json")


def test_plain_values_have_the_keys_of_a_file(registry: Registry) -> None:
    data = complete_recipe()
    data["data"][0]["a\nb"] = {"\u200d": 1}
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(data, registry, where="dreamkit.json")
    assert [str(problem) for problem in caught.value.problems] == [
        r"dreamkit.json: data.0: expected a key without control characters, got 'a\nb'",
        r"dreamkit.json: data.0.a\nb: expected a key without control characters, got '\u200d'",
    ]


def test_each_key_has_its_place(base: Path, registry: Registry) -> None:
    recipe = load_recipe(str(base), ("train.steps=5",), registry)
    assert recipe.place("model.dream_queries") == line_of(base, "dream_queries")
    assert recipe.place("model.pooled_projector") == line_of(base, "model:")
    assert recipe.place("train.steps") == "command line"


def test_interpolations_are_resolved(base: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_FOLDER", "/data")
    path = write(
        base.parent / "more.yaml",
        "extends: base.yaml\ntrain: {steps: 40, warmup: '${train.steps}', batch_size: '${model.dream_queries}'}\n"
        "data: [{name: pairs, path: '${oc.env:DATA_FOLDER}/pairs.jsonl'}]\ngeneration: {steps: '${.max_images}'}\n",
    )
    recipe = load_recipe(str(path), ["train.steps=7"], registry)
    assert (recipe.train.warmup, recipe.train.batch_size, recipe.generation.steps) == (7, 3, 2)
    assert recipe.data[0].config.path == Path("/data/pairs.jsonl")


@pytest.mark.parametrize(
    "text", ["${nowhere}", "${train.steps", "${train.warmup}", "${oc.env:A,${train.steps}}", "${x:1}"]
)
def test_an_invalid_interpolation_is_reported(base: Path, registry: Registry, text: str) -> None:
    path = write(base.parent / "more.yaml", f"extends: base.yaml\ntrain:\n  warmup: '{text}'\n  stepz: 1\n")
    unresolved, unknown = problems(path, registry)
    assert (unresolved.where, unresolved.key) == (f"{path}:3", "train.warmup")
    assert f"cannot resolve '{text}' (string)" in unresolved.message
    assert unknown.key == "train.stepz"


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("weights", "{folder}/weights"),
        ("./elsewhere", "{folder}/elsewhere"),
        ("/abs/olute", "/abs/olute"),
        ("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14"),
        ("pkg:dreamkit_digits/parts/clip", "pkg:dreamkit_digits/parts/clip"),
    ],
)
def test_a_relative_source_starts_from_its_file(
    base: Path, registry: Registry, written: str, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base.parent / "weights").mkdir()
    inner = base.parent / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    data = complete_recipe()
    data["model"]["vision_encoder"] = {"name": "clip", "pretrained": written}
    data["init"] = "run/checkpoint"
    write(base, data)
    recipe = load_recipe(str(write(inner / "more.yaml", "extends: ../base.yaml\n")), (), registry)
    assert recipe.model.vision_encoder.config.pretrained == resolved.format(folder=base.parent)
    assert recipe.init == str(base.parent / "run/checkpoint")
    assert load_recipe(str(base), ["init=run"], registry).init == str(inner / "run")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            "pretrained: x/y, config: {}",
            "expected one source, got 'pretrained' ({place}) and 'config' ({place})",
        ),
        ("layer: -1", "missing 'pretrained' or 'config'"),
        ("pretrained: null", "missing 'pretrained' or 'config'"),
    ],
)
def test_a_part_has_exactly_one_source(
    tmp_path: Path, registry: Registry, sources: str, message: str
) -> None:
    data = complete_recipe()
    del data["model"]["vision_encoder"]
    base = write(tmp_path / "base.yaml", data)
    path = write(
        tmp_path / "a.yaml", f"extends: {base}\nmodel:\n  vision_encoder: {{name: clip, {sources}}}\n"
    )
    problem = only_problem(path, registry)
    assert (problem.where, problem.key) == (f"{path}:3", "model.vision_encoder")
    assert message.format(place=f"{path}:3") in problem.message


@pytest.mark.parametrize(
    ("written", "overrides"),
    [
        ("loss: {vm: 3}", []),
        ("loss: {denoising: 2}", ["loss.vm=3"]),
        ("loss: {denoising: 2}", ["loss={vm: 3}"]),
        ("loss: {vm: 2}", ["loss.denoising=3"]),
    ],
)
def test_an_earlier_key_is_read_as_the_current_one(
    written: str, overrides: list[str], base: Path, registry: Registry
) -> None:
    path = write(base.parent / "earlier.yaml", f"extends: base.yaml\n{written}\n")
    assert load_recipe(str(path), overrides, registry).loss.denoising == 3


def test_an_earlier_key_is_read_inside_an_interpolation(base: Path, registry: Registry) -> None:
    path = write(base.parent / "earlier.yaml", "extends: base.yaml\nloss: {vm: 5, lm: '${loss.vm}'}\n")
    recipe = load_recipe(str(path), (), registry)
    assert (recipe.loss.lm, recipe.loss.denoising) == (5, 5)


def test_a_problem_names_the_earlier_key_that_was_written(base: Path, registry: Registry) -> None:
    path = write(base.parent / "earlier.yaml", "extends: base.yaml\nloss:\n  vm: -1\n")
    (problem,) = problems(path, registry)
    assert (problem.where, problem.key) == (f"{path}:3 (written as vm)", "loss.denoising")


def test_an_earlier_key_beside_the_current_one_is_refused(base: Path, registry: Registry) -> None:
    path = write(base.parent / "both.yaml", "extends: base.yaml\nloss: {vm: 3, denoising: 3}\n")
    (problem,) = problems(path, registry)
    assert (problem.key, problem.message.split(";")[0]) == ("loss.vm", "unknown key 'vm'")


def test_a_dict_may_have_an_earlier_key(registry: Registry) -> None:
    recipe = recipe_from_dict({**complete_recipe(), "loss": {"lm": 1, "vm": 4}}, registry)
    assert recipe.loss.denoising == 4
