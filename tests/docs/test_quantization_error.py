"""The errors of quantized parts that docs/training.md states, measured again on the parts of the digits."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.model.model import DreamModel
from dreamkit.parts.specs import Condition
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import WITH_SOURCE
from dreamkit.registry.registry import Registry

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text()
ROW = re.compile(
    r"^\| (?:language model|vision encoder|image decoder): (.*) \| ([\d.]+) % \| ([\d.]+) % \|$", re.M
)
STATED = {output: {"nf4": float(nf4), "int8": float(int8)} for output, nf4, int8 in ROW.findall(PAGE)}


@cache
def model(kind: str | None) -> DreamModel:
    settings = ["train.trainable=[dream_queries]"]
    settings += [f"model.{part}.quantize={kind}" for part in WITH_SOURCE if kind]
    registry = Registry.load()
    return build(fit(load_recipe("digits/stage2", settings, registry), registry)).eval()


@torch.no_grad()
def outputs(model: DreamModel, seed: int) -> dict[str, Tensor]:
    """Compute the outputs of the parts for random tokens, pixels, latents and contexts."""
    generator = torch.Generator().manual_seed(seed)
    language, decoder, side = model.language_model, model.image_decoder, model.vision_encoder.spec.image_size
    ids = torch.randint(0, language.spec.vocab_size, (4, 48), generator=generator)
    positions = torch.arange(48).expand(4, -1)
    hidden = language.final_norm(language(language.embed(ids), positions, torch.zeros_like(positions)))
    pixels = torch.randn(4, 3, side, side, generator=generator).clamp(-1, 1)
    spec = decoder.spec
    latents = torch.randn(4, *spec.latent_shape((spec.image_size,) * 2), generator=generator)
    context = torch.randn(4, spec.context_tokens or 8, spec.context_dim, generator=generator)
    timesteps = torch.randint(0, 1000, (4,), generator=generator)
    return {
        "hidden states": hidden,
        "logits": language.logits(hidden),
        "features": model.vision_encoder(pixels),
        "predicted noise": decoder.denoise(latents, timesteps, Condition(context), {}),
    }


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_error_of_one_forward_pass_is_that_of_the_page(kind: str) -> None:
    seeds = range(3)
    expected, actual = ([outputs(model(each), seed) for seed in seeds] for each in (None, kind))
    assert STATED.keys() == expected[0].keys()
    for output, stated in STATED.items():
        errors = [
            100 * float((a[output] - e[output]).norm() / e[output].norm())
            for a, e in zip(actual, expected, strict=True)
        ]
        assert stated[kind] / 1.5 < max(errors) < 1.2 * stated[kind], (output, errors)
