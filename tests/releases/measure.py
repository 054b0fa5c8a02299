"""The numbers of a model that a later release must give again, asked of public names alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from PIL import Image as PIL
from torch import Tensor

from dreamkit import Document, DocumentDone, DreamModel, Image, Text

PROMPTS = ("red", "a")
RELATIVE, ABSOLUTE = 1e-5, 1e-7
ROUNDED = {"brightness": 0.1}  # of 255: what is rounded to whole numbers may fall on either side


def picture(seed: int, side: int = 16) -> PIL.Image:
    """A picture that is the same on every machine."""
    return PIL.frombytes(
        "RGB", (side, side), bytes((91 * seed + n * n // 7) % 256 for n in range(3 * side**2))
    )


def told(tensor: Tensor) -> dict[str, Any]:
    """A tensor, by some of its values."""
    flat = tensor.detach().double().flatten()
    some = flat[torch.linspace(0, len(flat) - 1, 8).long()]
    return {
        "shape": [*tensor.shape],
        "mean": flat.mean().item(),
        "std": flat.std().item(),
        "some": some.tolist(),
    }


@torch.no_grad()
def measured(model: DreamModel) -> dict[str, Any]:
    """What each part computes, in float64, from fixed pictures, words and noise, and the losses of it."""
    model = model.double().eval()
    encoder, language, decoder = model.vision_encoder, model.language_model, model.image_decoder
    pictures = [picture(1), picture(2)]
    features = encoder(encoder.preprocess(pictures).double())
    ids = torch.tensor([language.tokenize("a red box")])
    positions = torch.arange(ids.shape[1])[None]
    hidden = language(language.embed(ids), positions, torch.zeros_like(positions))
    logits = language.logits(language.final_norm(hidden))
    states = model.dream_states([Document((Image(pictures[0]), Text("is"))), "a red box"])
    condition = model.condition(states)
    targets, extras = decoder.preprocess(pictures)
    mean, std = decoder.posterior(targets.double())
    noise = torch.arange(mean.numel()).double().mul(math.e).sin().mul(math.sqrt(2)).view(mean.shape)
    timesteps = decoder.timesteps(2, torch.Generator().manual_seed(0))
    loss = decoder.loss(mean, condition, extras, noise=noise, timesteps=timesteps)
    drawn = decoder.draw(condition, steps=2, guidance=1.0, latents=noise)
    tensors = {
        "features": features,
        "vision tokens": model.visual_projector(features),
        "logits": logits,
        "word loss": torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"),
        "dream states": states,
        "context": condition.context,
        "latents": mean,
        "deviation": std,
        "denoising loss": loss,
        "drawn": drawn,
    }
    if condition.pooled is not None:
        tensors["pooled"] = condition.pooled
    numbers = {name: told(tensor) for name, tensor in tensors.items() if tensor is not None}
    return numbers | {"written": written(model)}


def written(model: DreamModel) -> list[dict[str, Any]]:
    """What the model makes of fixed prompts: each text as it stands, each picture by its values."""
    prompts = [*PROMPTS, Document((Image(picture(3)), Text("what?")))]
    events = model.generate(prompts, seed=5, max_tokens=10, max_images=2, steps=2)
    done = sorted((e for e in events if isinstance(e, DocumentDone)), key=lambda event: event.document)
    return [{"reason": event.reason, "said": [*map(_said, event.result)]} for event in done]


def _said(segment: Text | Image) -> Any:
    if isinstance(segment, Text):
        return segment.text
    pixels = torch.frombuffer(bytearray(segment.picture.tobytes()), dtype=torch.uint8)
    return {"size": [*segment.picture.size], "brightness": pixels.double().mean().item()}


def same(found: Any, expected: Any, name: str = "") -> None:
    """Compares what was found with what is recorded, which is all that has to be there."""
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys(), name
        for key, value in expected.items():
            same(found[key], value, key)
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for one, other in zip(found, expected, strict=True):
            same(one, other, name)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=RELATIVE, abs=ROUNDED.get(name, ABSOLUTE)), name
    else:
        assert found == expected, name
