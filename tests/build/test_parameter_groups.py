"""Groups of trained parameters: by part or pattern, with and without weight decay."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import layouts
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.build.parameter_groups import ParameterGroup, parameter_groups
from dreamkit.errors import RecipeError
from dreamkit.model.model import DreamModel
from dreamkit.registry.registry import Registry
from recipe_files import complete_recipe, write
from runs import run

REGISTRY = Registry.load()
EVERY = [*layouts.TRAINABLE, "vision_encoder", "image_decoder"]


def model_and_groups(**settings: Any) -> tuple[DreamModel, list[ParameterGroup]]:
    recipe = layouts.recipe(weight_decay=0.1, **settings)
    model = build(fit(recipe, REGISTRY))
    model.set_trainable(recipe.train.trainable)
    return model, parameter_groups(model, recipe)


def names(model: DreamModel, group: ParameterGroup) -> set[str]:
    own = {id(parameter) for parameter in group.parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def test_vectors_and_embeddings_have_no_decay() -> None:
    model, (decayed, others) = model_and_groups(trainable=EVERY)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert (decayed.weight_decay, others.weight_decay) == (0.1, 0.0)
    assert names(model, decayed) | names(model, others) == {*trained}
    matrices = {name for name, p in trained.items() if p.dim() > 1}
    embeddings = matrices & names(model, others)
    assert embeddings == {
        *("dream_queries", "language_model.new_embed", "language_model.new_head"),
        "language_model.model.model.embed_tokens.weight",
        *(name for name in trained if name.endswith("position_embedding.weight")),
    }
    norms = [name for name, module in model.named_modules() if re.search("norm", type(module).__name__, re.I)]
    assert len(norms) > 10 and not {f"{name}.weight" for name in norms} & names(model, decayed)


def test_a_module_names_what_has_no_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nn.Conv2d, "no_weight_decay", lambda self: {"weight", "a_token_that_it_lacks"}, raising=False
    )
    model, (decayed, _) = model_and_groups(trainable=["vision_encoder"])
    convolutions = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    assert convolutions and not convolutions & names(model, decayed)


def test_a_tensor_belongs_to_the_first_group_that_matches_it() -> None:
    model, groups = model_and_groups(
        learning_rate=0.01,
        warmup=3,
        groups=[
            {"match": "dream_queries", "learning_rate": 0.5, "weight_decay": 0.2},
            {"match": "*.layers.0.*.weight", "weight_decay": 0.3},
            {"match": "language_model", "warmup": 0.5, "weight_decay": 0.4},
        ],
    )
    settings = [(g.match, g.learning_rate, g.weight_decay, g.warmup) for g in groups]
    assert settings == [
        ("dream_queries", 0.5, 0.2, 3),
        ("*.layers.0.*.weight", 0.01, 0.3, 3),  # norms, too: the pattern matches them
        ("language_model", 0.01, 0.4, 2),
        ("language_model", 0.01, 0.0, 2),
        ("", 0.01, 0.1, 3),
        ("", 0.01, 0.0, 3),
    ]
    assert names(model, groups[0]) == {"dream_queries"}
    assert any("layernorm" in name for name in names(model, groups[1]))
    assert all(".layers.1." in name or "layers" not in name for name in names(model, groups[2]))
    assert {"language_model.new_embed", "language_model.new_head"} <= names(model, groups[3])
    every = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(every) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_adapters_and_rows_of_tokens_are_matched() -> None:
    groups = [{"match": "*.lora_*", "learning_rate": 0.5}, {"match": "new_tokens", "learning_rate": 0.25}]
    adapters = [{"target": "language_model", "rank": 2}]
    model, made = model_and_groups(
        adapters=adapters, trainable=["dream_queries", "new_tokens"], groups=groups
    )
    assert all("lora_" in name for name in names(model, made[0])) and made[0].learning_rate == 0.5
    assert names(model, made[1]) == {"language_model.new_embed", "language_model.new_head"}


def test_parts_that_are_not_trained_are_named_with_their_line(tmp_path: Path) -> None:
    recipe = complete_recipe()
    recipe["train"]["trainable"] = ["dream_queries"]
    recipe["train"]["groups"] = [
        {"match": "vision_encoder", "learning_rate": 0.1},
        {"match": "language_modell", "learning_rate": 0.1},
        {"match": "*.nothing", "learning_rate": 0.1},  # known with the model only
    ]
    path = write(tmp_path / "recipe.yaml", recipe)
    problems = fit(layouts.load_recipe(str(path), [], REGISTRY), REGISTRY).problems
    lines = path.read_text().splitlines()
    assert [problem.key for problem in problems] == ["train.groups.0.match", "train.groups.1.match"]
    assert "no tensor of vision_encoder is trained; add it to train.trainable" in problems[0].message
    assert "did you mean 'language_model'?" in problems[1].message
    for problem, name in zip(problems, ("vision_encoder", "language_modell"), strict=True):
        file, _, line = problem.where.rpartition(":")
        assert file == str(path) and name in lines[int(line) - 1]


def test_patterns_that_match_nothing_end_a_run_before_it_begins(tmp_path: Path) -> None:
    groups = [
        {"match": "*.layerz.0.*", "learning_rate": 0.1},
        {"match": "language_model.model.norm.weigh", "learning_rate": 0.1},
        {"match": "*", "learning_rate": 0.1},
        {"match": "dream_queries", "learning_rate": 0.1},
    ]
    with pytest.raises(RecipeError) as caught:
        run(tmp_path / "out", layouts.recipe(groups=groups))
    problems = caught.value.problems
    assert [problem.key for problem in problems] == [f"train.groups.{number}.match" for number in (0, 1, 3)]
    assert "expected a match of a trained tensor, got '*.layerz.0.*'" in problems[0].message
    assert "did you mean 'language_model." in problems[1].message
    assert "groups above it have every tensor that 'dream_queries' matches" in problems[2].message
    assert not (tmp_path / "out").exists()
