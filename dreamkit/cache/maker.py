"""What of a model makes a table: how, whether it stays the same in training, and what tells it from another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL.Image import Image as Picture
from torch import Tensor, nn

from dreamkit.cache.identity import ROUNDING, Maker, distance
from dreamkit.cache.keys import KEY_BYTES
from dreamkit.cache.manifest import MADE_BY
from dreamkit.cache.probe import Weights, exact_float32, probe_picture, samples
from dreamkit.errors import CacheError, DreamkitError
from dreamkit.model.model import DreamModel
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.recipe.sections import Recipe, plain

MENDING = "its plug-in needs mending: `dreamkit test-plugin DISTRIBUTION` says what its contract asks for"
COMPUTES = {"features": "forward", "latents": "posterior"}  # the method
Preprocess = Callable[[Sequence[Picture]], Any]  # that of either kind of part


def why_not(model: DreamModel, table: str) -> str | None:
    """Why what makes a table cannot be computed once for `model`, whose trainable parts are set; None: it can."""
    key = MADE_BY[table]
    decoder = model.image_decoder
    if table == "latents" and decoder.posterior_module is None:
        name = type(decoder).__name__
        if type(decoder).posterior is not ImageDecoder.posterior:
            return (
                f"{name} gives `posterior`, but its posterior_module is None: it names no weights; {MENDING}"
            )
        return (
            f"{name} does not tell mean and standard deviation of its latents: its posterior_module is None"
        )
    if any(parameter.requires_grad for parameter in maker_module(model, table).parameters()):
        return f"{key} learns (train.trainable and model.adapters), so that what it computes changes"
    return None


def maker_module(model: DreamModel, table: str) -> nn.Module:
    """The module that alone makes a table, of a model that can make it."""
    if table == "features":
        return model.vision_encoder
    root = model.image_decoder.posterior_module
    assert root is not None, "what tells no posterior has no latents to cache"
    with _asked(model, table, f"posterior_module is '{root}'"):
        return model.image_decoder.get_submodule(root)


@contextmanager
def _asked(model: DreamModel, table: str, what: str) -> Iterator[None]:
    """What a part does wrong when it is asked for a table is said of that part.

    Raises:
        CacheError: it fails at `what`.
    """
    part = model.parts()[MADE_BY[table]]
    try:
        yield
    except (DreamkitError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the code of a plug-in may fail in any way
        raise CacheError(
            f"{table} cannot be made: {MADE_BY[table]} ({type(part).__name__}): {what}: {type(error).__name__}: "
            f"{error}; {MENDING}"
        ) from error


def preprocess_of(model: DreamModel, table: str) -> Preprocess:
    method: Preprocess = model.parts()[MADE_BY[table]].preprocess  # type: ignore[assignment]
    return method


def preprocessed(preprocess: Preprocess, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixels, and the extras of a decoder."""
    made = preprocess(pictures)
    return made if isinstance(made, tuple) else (made, {})


@torch.no_grad()
def compute(model: DreamModel, table: str, pixels_NCHW: Tensor) -> dict[str, Tensor]:
    """The tensors (N, ...) of a table, but for extras."""
    if table == "features":
        return {"features": model.vision_encoder(pixels_NCHW)}
    mean, std = model.image_decoder.posterior(pixels_NCHW)
    return {"mean": mean, **({} if std is None else {"std": std})}


def training_precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context that training computes in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bfloat16")


def maker(model: DreamModel, recipe: Recipe, table: str, device: torch.device) -> Maker:
    """What makes a table of `model`, which can make it; that is moved to `device`, and nothing else.

    It is asked what it makes of a picture: exactly, to be compared, and as in training, to see whether that differs.
    """
    module = maker_module(model, table)
    was_training = module.training
    module.to(device).eval()
    with _asked(model, table, "preprocess"):
        pixels, extras = preprocessed(preprocess_of(model, table), [probe_picture()])
    weights = Weights(model.parts()[MADE_BY[table]])
    precision = recipe.train.precision
    with exact_float32(), _asked(model, table, COMPUTES[table]):
        with weights:
            exact = samples(compute(model, table, pixels.to(device)))
        if precision != "float32":
            with training_precision(recipe, device):
                trained = samples(compute(model, table, pixels.to(device)))
            if all(distance(exact[name], trained[name]) <= ROUNDING for name in exact):
                precision = "float32"
    module.train(was_training)
    return {
        "part": plain(getattr(recipe.model, MADE_BY[table])),
        "weights": weights.sha256(),
        "precision": precision,
        "preprocess": samples({"pixels": pixels, **extras}),
        "computes": exact,
    }


def row_bytes(model: DreamModel, recipe: Recipe, table: str, device: torch.device) -> int:
    """What a picture takes in a table; of a model whose `maker` was told."""
    pixels, extras = preprocessed(preprocess_of(model, table), [probe_picture()])
    with training_precision(recipe, device):
        made = compute(model, table, pixels.to(device))
    return KEY_BYTES + sum(tensor.nbytes for tensor in (*made.values(), *extras.values()))
