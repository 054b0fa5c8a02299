"""What of a model makes a table: whether it stays the same in training, and what tells it from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image as PIL
from torch import Tensor, nn

from dreamkit.cache.manifest import MADE_BY, Maker
from dreamkit.model import DreamModel
from dreamkit.recipe import Recipe, plain


def why_not(model: DreamModel, table: str) -> str | None:
    """Why what makes a table cannot be computed once for `model`, whose trainable parts are set; None: it can."""
    key = MADE_BY[table]
    module = _weights(model, table)
    if module is None:
        name = type(model.image_decoder).__name__
        return f"{name} does not tell mean and standard deviation of its latents: its latent_root is None"
    if any(parameter.requires_grad for parameter in module.parameters()):
        return f"{key} learns (train.trainable and model.adapters), so that what it computes changes"
    return None


def maker(model: DreamModel, recipe: Recipe, table: str) -> Maker:
    """What makes a table of `model`, which can make it."""
    key = MADE_BY[table]
    part, weights = model.parts()[key], _weights(model, table)
    assert weights is not None, "what cannot be cached has no maker"
    sample = part.preprocess([_sample()])  # type: ignore[operator]  # that of both kinds of part
    pixels, extras = sample if isinstance(sample, tuple) else (sample, {})
    return Maker(
        part=plain(getattr(recipe.model, key)),
        weights=_hash(weights.state_dict()),
        image_size=part.spec.image_size,
        preprocess=_hash({"": pixels, **extras}),
        precision=recipe.train.precision,
    )


def _weights(model: DreamModel, table: str) -> nn.Module | None:
    """The module whose weights decide on a table."""
    if table == "features":
        return model.vision_encoder
    root = model.image_decoder.latent_root
    return None if root is None else model.image_decoder.get_submodule(root)


def _sample() -> PIL.Image:
    """A small picture, wider than high, of all kinds of colours."""
    width, height = 48, 32
    return PIL.frombytes("RGB", (width, height), bytes(i * i // 7 % 256 for i in range(width * height * 3)))


def _hash(tensors: Mapping[str, Any]) -> str:
    """The sha256 of tensors with their names, dtypes and shapes."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        assert isinstance(tensor, Tensor), f"{name} is kept beside the weights, but is no tensor"
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()
