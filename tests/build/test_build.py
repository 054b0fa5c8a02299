"""The model built from a recipe whose parts fit."""

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


def test_the_seed_determines_every_random_weight(registry: Registry) -> None:
    def weights(seed: int, before: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(before)
        return build(fit(read(registry, train={**TRAIN, "seed": seed}), registry)).state_dict()

    first, again, other = weights(1, before=0), weights(1, before=9), weights(2, before=0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("dream_queries", "visual_projector.layer.weight", "condition_projector.layer.weight"):
        assert not torch.equal(first[name], other[name])


def test_a_model_has_its_recipe_and_loss_weights(registry: Registry) -> None:
    recipe = read(registry, loss={"lm": 2, "denoising": 3})
    model = build(fit(recipe, registry))
    assert model.recipe is recipe
    assert (model.lm_weight, model.denoising_weight) == (2, 3)
    assert model.pooled_projector is None


def test_a_pooled_projector_is_linear_by_default(registry: Registry) -> None:
    decoder = tiny_part("image_decoder", "pooled")
    model = build(fit(read(registry, model__image_decoder=decoder), registry))
    assert model.pooled_projector is not None
    assert model.pooled_projector.dense_layers()[0].weight.shape == (6, 32)
    trained = {}
    for trainable in ("condition_projector", "pooled_projector", "visual_projector"):
        model.set_trainable([trainable])
        trained[trainable] = {
            name for name, part in model.parts().items() if next(part.parameters()).requires_grad
        }
    assert trained["condition_projector"] == {"condition_projector", "pooled_projector"}
    assert [trained[name] for name in ("pooled_projector", "visual_projector")] == [
        {"pooled_projector"},
        {"visual_projector"},
    ]
    named = read(registry, model__image_decoder=decoder, model__pooled_projector={"name": "mlp", "depth": 3})
    assert len(build(fit(named, registry)).pooled_projector.dense_layers()) == 3


def tiny_section(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """Return the section of a component's tiny config."""
    return {"name": name, **plain(registry.get(kind, name).tiny_config())}


def test_one_line_swaps_stable_diffusion_for_sdxl(registry: Registry) -> None:
    sdxl = tiny_section(registry, "image_decoder", "sdxl")
    recipe = read(registry, model__image_decoder=sdxl)
    result = fit(recipe, registry)
    assert result.problems == [] and result.image_decoder is not None
    spec = result.projectors["pooled_projector"]
    assert (spec.in_dim, spec.in_tokens, spec.out_dim) == (32, 1, result.image_decoder.pooled_dim)
    model = build(fit(recipe, registry))
    batch = Collator(model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess)(
        documents()
    )
    model(batch).loss.backward()
    assert model.pooled_projector.layer.weight.grad.abs().sum() > 0


def test_the_condition_projector_has_the_scale_of_its_decoder(registry: Registry) -> None:
    sana = tiny_section(registry, "image_decoder", "sana")
    section = {"name": "encoder", "depth": 1}
    recipe = read(
        registry,
        model__image_decoder=sana,
        model__condition_projector=section,
        model__visual_projector=section | {"width": 8},
    )
    model = build(fit(recipe, registry))
    scale = model.image_decoder.spec.context_scale
    assert scale == pytest.approx(5.5**0.5)
    assert model.condition_projector.spec.out_rms == scale
    condition = model.condition_projector(torch.randn(2, 3, 32))
    assert condition.square().mean().sqrt().item() == pytest.approx(scale, rel=0.01)
    assert model.visual_projector.spec.out_rms == 1


@pytest.mark.parametrize("use_dora", [False, True])
def test_of_an_adapted_part_only_the_adapter_is_trained(registry: Registry, use_dora: bool) -> None:
    adapters = [
        {"target": "language_model", "rank": 2, "modules": ["q_proj", "v_proj"], "use_dora": use_dora}
    ]
    model = build(fit(read(registry, model__adapters=adapters), registry))
    trained = {name for name, p in model.language_model.named_parameters() if p.requires_grad}
    adapted = {name.split(".lora_")[0] for name in trained}
    assert trained and all(is_adapter(name) for name in trained)
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "v_proj"} and len(adapted) == 2 * 2
    model.set_trainable(["dream_queries"])
    batch = Collator(
        model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess, packing=True
    )(documents()[:1])
    model(batch).loss.backward()
    gradients = {name for name, p in model.named_parameters() if p.grad is not None}
    assert gradients == {f"language_model.{name}" for name in trained} | {"dream_queries"}


def test_a_part_that_fails_to_build_is_a_problem_of_its_section(registry: Registry) -> None:
    recipe = read(registry, model__visual_projector={"name": "unmakeable"})
    assert fit(recipe, registry).problems == []
    with pytest.raises(RecipeError, match=r"model\.visual_projector: RuntimeError: no room"):
        build(fit(recipe, registry))
