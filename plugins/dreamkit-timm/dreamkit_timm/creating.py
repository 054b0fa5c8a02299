"""timm's models: their creation, also on the meta device, and the removal of layers.

N images, C channels, H and W pixels, h and w rows and columns of features.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor

from dreamkit import ConfigError, describe_error

Built = TypeVar("Built")


def create_model(name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor] | None = None) -> Any:
    """Create the whole model without its head, with the weights that timm converts from `state`, if any."""
    overlay = None
    if state is not None:
        # another number of classes makes timm accept missing weights; the caller checks them
        no_source = {"file": None, "source": None, "hf_hub_id": None, "url": None}
        overlay = {**no_source, "state_dict": dict(state), "num_classes": -1, "classifier": ()}
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # timm replaces old names of architectures
        model: Any = timm.create_model(
            name,
            pretrained=state is not None,
            pretrained_cfg_overlay=overlay,
            **{**arguments, "num_classes": 0},
        )
    model.pretrained_cfg.pop("state_dict", None)
    return model


def on_meta(build: Callable[[], Built], key: str, detail: str = "") -> Built:
    """Return the result of `build` on the meta device, without memory for weights.

    Raises:
        ConfigError: timm raised an error; the message, at `key`, ends in `detail`.
    """
    try:
        with torch.device("meta"):
            return build()
    except ConfigError:
        raise
    except Exception as error:  # a model's constructor and forward pass raise any type of error
        raise ConfigError({key: f"timm raised {describe_error(error)}{detail}"}) from error


def features(model: Any, layer: int, pixels_NCHW: Tensor, **options: Any) -> Tensor:
    """Return a layer's features (N, C, h, w) before the last norm, without class token and registers."""
    (features_NChw,) = model.forward_intermediates(
        pixels_NCHW, indices=[layer], output_fmt="NCHW", intermediates_only=True, **options
    )
    return features_NChw


def prune(model: Any, layer: int) -> tuple[str, ...]:
    """Remove the modules after `layer`; return the names of the removed modules and parameters."""
    before = {name for name, _ in model.named_parameters()}
    model.prune_intermediate_layers([layer], prune_norm=True, prune_head=True)
    after = {name for name, _ in model.named_parameters()}
    remaining = {name[: index + 1] for name in after for index, letter in enumerate(name) if letter == "."}
    removed = set()
    for name in before - after:
        parts = name.split(".")
        modules = (".".join(parts[:count]) for count in range(1, len(parts)))
        removed.add(next((module for module in modules if f"{module}." not in remaining), name))
    return tuple(sorted(removed))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence timm's warnings about the missing head."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
