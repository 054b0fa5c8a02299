"""Numbers of a model that later releases must reproduce, computed with public names only."""

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
ROUNDED = {"brightness": 0.1}  # of 255; a pixel may be rounded up or down


def picture(seed: int, side: int = 16) -> PIL.Image:
    """Return a square RGB image that is the same on every machine."""
    return PIL.frombytes(
        "RGB", (side, side), bytes((91 * seed + n * n // 7) % 256 for n in range(3 * side**2))
    )


def describe_tensor(tensor: Tensor) -> dict[str, Any]:
    """Return the shape, mean, standard deviation and eight values of a tensor."""
    flat = tensor.detach().double().flatten()
    some = flat[torch.linspace(0, len(flat) - 1, 8).long()]
    return {
        "shape": [*tensor.shape],
        "mean": flat.mean().item(),
        "std": flat.std().item(),
        "some": some.tolist(),
    }


@torch.no_grad()
def measure(model: DreamModel) -> dict[str, Any]:
    """Return outputs and losses of each part in float64, for fixed images, words and noise, and generated documents."""
    model = model.double().eval()
    encoder, language, decoder = model.vision_encoder, model.language_model, model.image_decoder
    images = [picture(1), picture(2)]
    features = encoder(encoder.preprocess(images).double())
    ids = torch.tensor([language.tokenize("a red box")])
    positions = torch.arange(ids.shape[1])[None]
    hidden = language(language.embed(ids), positions, torch.zeros_like(positions))
    logits = language.logits(language.final_norm(hidden))
    states = model.dream_states([Document((Image(images[0]), Text("is"))), "a red box"])
    condition = model.condition(states)
    targets, extras = decoder.preprocess(images)
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
    numbers = {name: describe_tensor(tensor) for name, tensor in tensors.items() if tensor is not None}
    return numbers | {"written": generate(model)}


def generate(model: DreamModel) -> list[dict[str, Any]]:
    """Return descriptions of the documents that the model generates from fixed prompts."""
    prompts = [*PROMPTS, Document((Image(picture(3)), Text("what?")))]
    events = model.generate(prompts, seed=5, max_tokens=10, max_images=2, steps=2)
    ends = sorted((e for e in events if isinstance(e, DocumentDone)), key=lambda event: event.document)
    # expected.json of earlier releases has the keys "said" and "written"
    return [{"reason": end.reason, "said": [*map(describe_segment, end.result)]} for end in ends]


def describe_segment(segment: Text | Image) -> Any:
    """Return the text of a segment, or the size and mean brightness of its image."""
    if isinstance(segment, Text):
        return segment.text
    pixels = torch.frombuffer(bytearray(segment.picture.tobytes()), dtype=torch.uint8)
    return {"size": [*segment.picture.size], "brightness": pixels.double().mean().item()}


def assert_same(actual: Any, expected: Any, name: str = "") -> None:
    """Assert that `actual` has the recorded values, up to rounding; further keys of dictionaries are ignored."""
    if isinstance(expected, dict):
        assert expected.keys() <= actual.keys(), name
        for key, value in expected.items():
            assert_same(actual[key], value, key)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), name
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, name)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=RELATIVE, abs=ROUNDED.get(name, ABSOLUTE)), name
    else:
        assert actual == expected, name
