"""Which parts fit each other, told without weights, and the model that is built of those that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

import odd_parts
from dreamkit.batch import Collator
from dreamkit.build import build, check, fit
from dreamkit.errors import RecipeError
from dreamkit.model import is_adapter
from dreamkit.plugins import Registry
from dreamkit.recipe import Recipe, load_recipe
from tiny import documents, recipe

TRAIN = {"trainable": ["dream_queries"], "steps": 1, "batch_size": 1}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return odd_parts.registry()


def read(registry: Registry, **changes: Any) -> Recipe:
    return Recipe.from_dict(
        recipe(**{key.replace("__", "."): value for key, value in changes.items()}), registry
    )


def tiny_part(key: str, name: str) -> dict[str, Any]:
    """The section of the tiny recipe with another component of the same config."""
    return {"name": name, "config": recipe()["model"][key]["config"]}


def test_the_tiny_recipe_fits(registry: Registry) -> None:
    found = fit(read(registry), registry)
    assert found.problems == []
    assert dict((part, shapes) for part, _, shapes in found.summary()) == {
        "language_model": "256 x 32, vocabulary of 260",
        "vision_encoder": "16 px -> 4 x 16",
        "image_decoder": "any x 12 -> 16 px",
        "visual_projector": "4 x 16 -> 4 x 32",
        "condition_projector": "3 x 32 -> 3 x 12",
    }


@pytest.mark.parametrize(
    ("changes", "key", "fragments"),
    [
        (
            {"model__image_decoder": tiny_part("image_decoder", "fixedtokens")},
            "model.condition_projector",
            ("gives 3 tokens", "takes 4", "set model.dream_queries to 4"),
        ),
        (
            {"model__pooled_projector": {"name": "linear"}},
            "model.pooled_projector",
            ("'linear' found", "takes no pooled vector", "remove it"),
        ),
        (
            {"train": {**TRAIN, "trainable": ["pooled_projector"]}},
            "train.trainable",
            ("'pooled_projector' found", "this model has none"),
        ),
        (
            {
                "model__image_decoder": tiny_part("image_decoder", "pooled"),
                "model__pooled_projector": {"name": "doubling"},
            },
            "model.pooled_projector",
            ("2 tokens of 1",),
        ),
        (
            {"model__dream_queries": 300},
            "model.dream_queries",
            ("302 + 6 tokens", "row holds 256", "train.max_length"),
        ),
        ({"train": {**TRAIN, "max_length": 12}}, "train.max_length", ("5 + 6 tokens", "row holds 12")),
        ({"train": {**TRAIN, "max_length": 257}}, "train.max_length", ("rows of 257", "at most 256")),
        (
            {"model__language_model": tiny_part("language_model", "apart")},
            "train.packing",
            ("true found", "set it to false"),
        ),
        (
            {"model__condition_projector": {"name": "halving"}},
            "model.condition_projector",
            ("3 tokens go in", "pairs"),
        ),
        ({"model__visual_projector": {"name": "narrow"}}, "model.visual_projector", ("out_dim 5", "have 32")),
        ({"model__visual_projector": {"name": "crashing"}}, "model.visual_projector", ("KeyError: 'a'",)),
        (
            {
                "model__vision_encoder": tiny_part("vision_encoder", "unadaptable"),
                "model__adapters": [{"target": "vision_encoder"}],
            },
            "model.adapters.0.target",
            ("'unadaptable' names no layers", "'modules'"),
        ),
        (
            {"model__adapters": [{"target": "language_model"}, {"target": "language_model", "rank": 3}]},
            "model.adapters.1.target",
            ("a second time",),
        ),
        (
            {
                "model__adapters": [{"target": "language_model"}],
                "train": {**TRAIN, "trainable": ["language_model"]},
            },
            "train.trainable",
            ("'language_model' found", "it has an adapter"),
        ),
        (
            {"model__special_tokens": {"dream_end": "<dream_start>"}},
            "model.special_tokens.dream_end",
            ("'<dream_start>' found", "also dream_start"),
        ),
        (
            {"model__special_tokens": {"dream_end": " "}},
            "model.special_tokens.dream_end",
            ("' ' found", "<dream_end>"),
        ),
        ({"model__vision_encoder__layer": 7}, "model.vision_encoder.layer", ("layer 7", "3 layers")),
    ],
)
def test_what_does_not_fit(
    registry: Registry, changes: dict[str, Any], key: str, fragments: tuple[str, ...]
) -> None:
    described = read(registry, **changes)
    (problem,) = check(described, registry)
    assert problem.key == key
    assert all(fragment in problem.message for fragment in fragments), problem.message
    with pytest.raises(RecipeError) as caught:
        build(described, registry)
    assert caught.value.problems == (problem,)


def test_everything_that_does_not_fit_is_found_at_once(registry: Registry) -> None:
    described = read(
        registry,
        model__image_decoder=tiny_part("image_decoder", "fixedtokens"),
        model__visual_projector={"name": "narrow"},
        model__adapters=[{"target": "image_decoder"}, {"target": "image_decoder"}],
        train={**TRAIN, "max_length": 1000},
    )
    assert {problem.key for problem in check(described, registry)} == {
        "model.condition_projector",
        "model.visual_projector",
        "model.adapters.1.target",
        "train.max_length",
    }


def test_a_refused_value_in_a_config_is_placed_at_its_line(tmp_path: Path, registry: Registry) -> None:
    changed = recipe(
        **{
            "model.language_model.config.hidden_sise": 3,
            "model.image_decoder.config.unet.norm_num_group": 4,
        }
    )
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(changed))
    lines = path.read_text().splitlines()
    for problem in check(load_recipe(str(path), (), registry), registry):
        line = lines[int(problem.where.removeprefix(f"{path}:")) - 1]
        assert (
            line.split(":")[0].strip() == problem.key.rpartition(".")[2] in ("hidden_sise", "norm_num_group")
        )
        assert "did you mean" in problem.message


@pytest.mark.parametrize(
    ("name", "message"),
    [("reserved", "has 'name', which is the section's own"), ("unreadable", "name 'Nothing' is not defined")],
)
def test_a_component_whose_config_cannot_be_a_section(registry: Registry, name: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(registry, model__visual_projector={"name": name})
    (problem,) = caught.value.problems
    assert problem.key.startswith("model.visual_projector") and message in problem.message


def test_checking_needs_no_weights_and_building_does(tmp_path: Path, registry: Registry) -> None:
    config = CLIPVisionConfig(**recipe()["model"]["vision_encoder"]["config"])
    config.save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path)
    described = read(registry, model__vision_encoder={"name": "clip", "pretrained": str(tmp_path)})
    assert check(described, registry) == []
    with pytest.raises(RecipeError, match=r"model\.vision_encoder: .*weights") as caught:
        build(described, registry)
    assert str(tmp_path) in str(caught.value)
    CLIPVisionModel(config).save_pretrained(tmp_path)
    model = build(described, registry)
    assert model.sources["vision_encoder"] == str(tmp_path)
    assert model.sources["language_model"] is None and model.sources["visual_projector"] is None


def test_a_source_that_is_not_there_is_a_problem_of_its_section(registry: Registry, tmp_path: Path) -> None:
    described = read(
        registry, model__vision_encoder={"name": "clip", "pretrained": str(tmp_path / "nowhere")}
    )
    (problem,) = check(described, registry)
    assert problem.key.startswith("model.vision_encoder") and str(tmp_path / "nowhere") in problem.message


def test_the_seed_decides_every_fresh_weight(registry: Registry) -> None:
    def weights(seed: int, before: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(before)
        return build(read(registry, train={**TRAIN, "seed": seed}), registry).state_dict()

    first, again, other = weights(1, before=0), weights(1, before=9), weights(2, before=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("dream_queries", "visual_projector.layer.weight", "condition_projector.layer.weight"):
        assert not torch.equal(first[name], other[name])


def test_what_a_model_knows_of_its_recipe(registry: Registry) -> None:
    described = read(registry, loss={"lm": 2, "vm": 3})
    model = build(described, registry)
    assert model.recipe is described
    assert (model.lm_weight, model.vm_weight) == (2, 3)
    assert model.pooled_projector is None


def test_a_pooled_projector_is_linear_where_none_is_named(registry: Registry) -> None:
    decoder = tiny_part("image_decoder", "pooled")
    model = build(read(registry, model__image_decoder=decoder), registry)
    assert model.pooled_projector is not None
    assert model.pooled_projector.dense_layers()[0].weight.shape == (6, 32)
    named = read(registry, model__image_decoder=decoder, model__pooled_projector={"name": "mlp", "depth": 3})
    assert len(build(named, registry).pooled_projector.dense_layers()) == 3


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_are_all_that_learns_of_their_part(registry: Registry, use_dora: bool) -> None:
    adapters = [
        {"target": "language_model", "rank": 2, "modules": ["q_proj", "v_proj"], "use_dora": use_dora}
    ]
    model = build(read(registry, model__adapters=adapters), registry)
    learning = {name for name, p in model.language_model.named_parameters() if p.requires_grad}
    adapted = {name.split(".lora_")[0] for name in learning}
    assert learning and all(is_adapter(name) for name in learning)
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "v_proj"} and len(adapted) == 2 * 2
    model.set_trainable(["dream_queries"])
    batch = Collator(
        model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess, packing=True
    )(documents()[:1])
    model(batch).loss.backward()
    gradients = {name for name, p in model.named_parameters() if p.grad is not None}
    assert gradients == {f"language_model.{name}" for name in learning} | {"dream_queries"}


def test_an_adapter_without_such_layers_is_a_problem(registry: Registry) -> None:
    described = read(registry, model__adapters=[{"target": "language_model", "modules": ["no_such_layer"]}])
    with pytest.raises(RecipeError, match=r"model\.adapters\.0.*no_such_layer"):
        build(described, registry)


def test_a_part_that_cannot_be_made_is_a_problem_of_its_section(registry: Registry) -> None:
    described = read(registry, model__visual_projector={"name": "unmakeable"})
    assert check(described, registry) == []
    with pytest.raises(RecipeError, match=r"model\.visual_projector: RuntimeError: no room"):
        build(described, registry)
