"""Image decoders in a recipe: one line swaps them, and settings that do not fit are errors."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Collator
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.projector import Projector
from dreamkit.recipe.generation_section import GenerationSection
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from tiny import documents, recipe

# NumPy 2 warns of the way diffusers' schedulers convert tensors to arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

REGISTRY = Registry.load()
NOISE = ("ddpm", "ddim", "dpm-solver++", "unipc", "euler")
FLOW = ("flow-match-euler", "dpm-solver++", "unipc")
DECODERS = {"stable-diffusion": NOISE, "sdxl": NOISE, "sd3": FLOW, "sana": FLOW}


def recipe_with(name: str, image_size: int | None = None, **changes: Any) -> Recipe:
    """Return the tiny recipe with the tiny config of decoder `name`."""
    config = REGISTRY.get("image_decoder", name).tiny_config().config
    section = {"name": name, "config": config, "image_size": image_size}
    return recipe_from_dict(recipe(**{"model.image_decoder": section, **changes}), REGISTRY)


@pytest.mark.parametrize("name", DECODERS)
def test_one_line_swaps_the_decoder(name: str) -> None:
    model = build(fit(recipe_with(name), REGISTRY))
    assert (model.pooled_projector is not None) == (name in ("sdxl", "sd3"))
    projectors = [name for name, part in model.parts().items() if isinstance(part, Projector)]
    model.set_trainable([*projectors, "dream_queries"])
    collate = Collator(
        model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess, packing=False
    )
    batch = collate(documents())
    model(batch).loss.backward()
    for key, parameter in model.named_parameters():
        reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert reached == parameter.requires_grad, key
    condition = model.condition(model.dream_states(["a"]))
    images = model.image_decoder.draw(condition, steps=2, guidance=1.0)
    assert images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("scheduler", dict.fromkeys((*NOISE, *FLOW)))
def test_a_scheduler_of_another_objective_is_an_error(name: str, scheduler: str) -> None:
    problems = fit(recipe_with(name, generation={"scheduler": scheduler}), REGISTRY).problems
    if scheduler in DECODERS[name]:
        assert problems == []
        return
    (problem,) = problems
    objective = "flow matching" if DECODERS[name] is FLOW else "denoising over a noise schedule"
    assert problem.key == "generation.scheduler"
    assert f"got '{scheduler}'" in problem.message
    assert f"objective, {objective}" in problem.message
    assert f"expected one of {', '.join(DECODERS[name])}" in problem.message


@pytest.mark.parametrize(
    ("name", "size", "multiple"),
    [("stable-diffusion", 17, 2), ("sdxl", 17, 2), ("sd3", 18, 4), ("sana", 17, 2)],
)
def test_an_image_size_between_multiples_is_an_error(name: str, size: int, multiple: int) -> None:
    (problem,) = fit(recipe_with(name, image_size=size), REGISTRY).problems
    assert problem.key == "model.image_decoder.image_size"
    assert f"expected a positive multiple of {multiple} pixels" in problem.message


@pytest.mark.parametrize(
    ("name", "multiple"), [("stable-diffusion", 2), ("sdxl", 2), ("sd3", 4), ("sana", 2)]
)
def test_a_size_of_drawn_images_between_multiples_is_an_error(name: str, multiple: int) -> None:
    assert fit(recipe_with(name, generation={"size": [16, 32]}), REGISTRY).problems == []
    (problem,) = fit(recipe_with(name, generation={"size": [16, 16 + multiple // 2]}), REGISTRY).problems
    assert problem.key == "generation.size"
    assert f"expected positive multiples of {multiple} pixels as image size, got 16 x" in problem.message


@pytest.mark.parametrize("name", DECODERS)
def test_a_pooled_projector_needs_a_decoder_with_a_pooled_vector(name: str) -> None:
    problems = fit(recipe_with(name, **{"model.pooled_projector": {"name": "linear"}}), REGISTRY).problems
    keys = [problem.key for problem in problems]
    assert keys == ([] if name in ("sdxl", "sd3") else ["model.pooled_projector"])


@pytest.mark.parametrize("method", [ImageDecoder.draw, ImageDecoder.draw_steps])
def test_the_default_settings_of_a_drawing_are_those_of_a_recipe(method: Any) -> None:
    defaults, section = signature(method).parameters, GenerationSection()
    for name in ("scheduler", "steps", "guidance"):
        assert defaults[name].default == getattr(section, name)
