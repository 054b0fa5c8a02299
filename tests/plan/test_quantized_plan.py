"""The plan of quantized parts: bytes of the built parts, and the operations of whole weights."""

from pathlib import Path

import pytest

import tiny
from adapted_models import REGISTRY, SMALL, adapters, sources as sources
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.plan.memory import memory_of, total_bytes
from dreamkit.plan.plan import plan
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import WITH_SOURCE, Recipe


def recipe(sources: Path, kind: str | None) -> Recipe:
    train = {"trainable": SMALL, "steps": 1, "global_batch": 2, "gradient_checkpointing": True}
    plain = tiny.on_sources(sources, train=train, **adapters())
    for part in WITH_SOURCE:
        plain["model"][part]["quantize"] = kind
    return recipe_from_dict(plain, REGISTRY, where="tiny")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_plan_counts_the_bytes_of_the_built_parts(kind: str, sources: Path) -> None:
    quantized = recipe(sources, kind)
    packed, whole = (plan(each, REGISTRY) for each in (quantized, recipe(sources, None)))
    model = build(fit(quantized, REGISTRY))
    model.set_trainable(SMALL)
    assert packed.memory.weights == memory_of(model, quantized.train).weights < whole.memory.weights
    of_part = {part.part: part for part in packed.parts}
    for name in ("vision_encoder", "image_decoder"):
        part = model.parts()[name]
        assert of_part[name].bytes == total_bytes((*part.parameters(), *part.buffers()))
        assert of_part[name].component.endswith(f" ({kind})")
    assert [part.parameters for part in packed.parts] == [part.parameters for part in whole.parts]
    assert [part.trainable for part in packed.parts] == [part.trainable for part in whole.parts]
    assert packed.flops == whole.flops
    assert packed.memory.states == whole.memory.states and packed.memory.gradients == whole.memory.gradients


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_each_device_holds_packed_weights_whole(kind: str, sources: Path) -> None:
    shared, alone = (plan(recipe(sources, kind), REGISTRY, processes=each).memory for each in (2, 1))
    model = build(fit(recipe(sources, kind), REGISTRY))
    buffers = total_bytes(model.buffers())
    assert shared.weights == pytest.approx((alone.weights - buffers) / 2 + buffers, rel=0.02)
