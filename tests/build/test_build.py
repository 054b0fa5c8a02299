"""The model that is built of a recipe whose parts fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import odd_parts
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Collator
from dreamkit.errors import RecipeError
from dreamkit.model.adapters import is_adapter
from dreamkit.recipe.sections import plain
from dreamkit.registry.registry import Registry
from odd_parts import read, tiny_part
from tiny import documents

TRAIN = {"trainable": ["dream_queries"], "steps": 1, "batch_size": 1}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return odd_parts.registry()


def test_the_seed_decides_every_fresh_weight(registry: Registry) -> None:
    def weights(seed: int, before: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(before)
        return build(fit(read(registry, train={**TRAIN, "seed": seed}), registry)).state_dict()

    first, again, other = weights(1, before=0), weights(1, before=9), weights(2, before=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("dream_queries", "visual_projector.layer.weight", "condition_projector.layer.weight"):
        assert not torch.equal(first[name], other[name])


def test_what_a_model_knows_of_its_recipe(registry: Registry) -> None:
    described = read(registry, loss={"lm": 2, "denoising": 3})
    model = build(fit(described, registry))
    assert model.recipe is described
    assert (model.lm_weight, model.denoising_weight) == (2, 3)
    assert model.pooled_projector is None


def test_a_pooled_projector_is_linear_where_none_is_named(registry: Registry) -> None:
    decoder = tiny_part("image_decoder", "pooled")
    model = build(fit(read(registry, model__image_decoder=decoder), registry))
    assert model.pooled_projector is not None
    assert model.pooled_projector.dense_layers()[0].weight.shape == (6, 32)
    learning = {}
    for trainable in ("condition_projector", "pooled_projector", "visual_projector"):
        model.set_trainable([trainable])
        learning[trainable] = {
            name for name, part in model.parts().items() if next(part.parameters()).requires_grad
        }
    assert learning["condition_projector"] == {"condition_projector", "pooled_projector"}
    assert [learning[name] for name in ("pooled_projector", "visual_projector")] == [
        {"pooled_projector"},
        {"visual_projector"},
    ]
    named = read(registry, model__image_decoder=decoder, model__pooled_projector={"name": "mlp", "depth": 3})
    assert len(build(fit(named, registry)).pooled_projector.dense_layers()) == 3


def miniature(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """The section of a component's own miniature."""
    return {"name": name, **plain(registry.get(kind, name).tiny_config())}


def test_from_stable_diffusion_to_sdxl_it_is_one_line(registry: Registry) -> None:
    sdxl = miniature(registry, "image_decoder", "sdxl")
    described = read(registry, model__image_decoder=sdxl)
    found = fit(described, registry)
    assert found.problems == [] and found.image_decoder is not None
    spec = found.projectors["pooled_projector"]
    assert (spec.in_dim, spec.in_tokens, spec.out_dim) == (32, 1, found.image_decoder.pooled_dim)
    model = build(fit(described, registry))
    batch = Collator(model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess)(
        documents()
    )
    model(batch).loss.backward()
    assert model.pooled_projector.layer.weight.grad.abs().sum() > 0


def test_the_condition_projector_is_told_the_scale_of_its_decoder(registry: Registry) -> None:
    sana = miniature(registry, "image_decoder", "sana")
    section = {"name": "encoder", "depth": 1}
    described = read(
        registry,
        model__image_decoder=sana,
        model__condition_projector=section,
        model__visual_projector=section | {"width": 8},
    )
    model = build(fit(described, registry))
    scale = model.image_decoder.spec.context_scale
    assert scale == pytest.approx(5.5**0.5)
    assert model.condition_projector.spec.out_rms == scale
    condition = model.condition_projector(torch.randn(2, 3, 32))
    assert condition.square().mean().sqrt().item() == pytest.approx(scale, rel=0.01)
    assert model.visual_projector.spec.out_rms == 1


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_are_all_that_learns_of_their_part(registry: Registry, use_dora: bool) -> None:
    adapters = [
        {"target": "language_model", "rank": 2, "modules": ["q_proj", "v_proj"], "use_dora": use_dora}
    ]
    model = build(fit(read(registry, model__adapters=adapters), registry))
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
        build(fit(described, registry))


def test_a_part_that_cannot_be_made_is_a_problem_of_its_section(registry: Registry) -> None:
    described = read(registry, model__visual_projector={"name": "unmakeable"})
    assert fit(described, registry).problems == []
    with pytest.raises(RecipeError, match=r"model\.visual_projector: RuntimeError: no room"):
        build(fit(described, registry))
