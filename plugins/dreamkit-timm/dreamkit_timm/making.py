"""timm's models: made, on the meta device where nothing but their shapes is asked for, and cut after a layer.

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

from dreamkit import ConfigError

Built = TypeVar("Built")


def make(name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor] | None = None) -> Any:
    """The whole model, but for its head; filled with what timm makes of `state`, as far as that goes."""
    given = None
    if state is not None:
        # timm is strict but where the number of classes differs: what is lacking is for the caller to judge
        nowhere = {"file": None, "source": None, "hf_hub_id": None, "url": None}
        given = {**nowhere, "state_dict": dict(state), "num_classes": -1, "classifier": ()}
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # old names of architectures, which timm replaces
        model: Any = timm.create_model(
            name,
            pretrained=state is not None,
            pretrained_cfg_overlay=given,
            **{**arguments, "num_classes": 0},
        )
    model.pretrained_cfg.pop("state_dict", None)
    return model


def on_meta(build: Callable[[], Built], key: str) -> Built:
    """What `build` makes, without memory for its weights.

    Raises:
        ConfigError: timm refuses it.
    """
    try:
        with torch.device("meta"):
            return build()
    except ConfigError:
        raise
    except Exception as error:  # a model's constructor and its forward pass fail in any way they like
        raise ConfigError({key: f"timm refuses it: {one_line(error)}"}) from error


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def features(model: Any, layer: int, pixels_NCHW: Tensor, **options: Any) -> Tensor:
    """Features of one layer, (N, C, h, w): before the last norm, tokens that stand for no place left out."""
    found = model.forward_intermediates(
        pixels_NCHW, indices=[layer], output_fmt="NCHW", intermediates_only=True, **options
    )
    return found[0]


def cut(model: Any, layer: int) -> tuple[str, ...]:
    """Takes out what comes after a layer, and names it."""
    before = {name for name, _ in model.named_parameters()}
    model.prune_intermediate_layers([layer], prune_norm=True, prune_head=True)
    after = {name for name, _ in model.named_parameters()}
    kept = {name[: index + 1] for name in after for index, letter in enumerate(name) if letter == "."}
    gone = set()
    for name in before - after:
        parts = name.split(".")
        heads = (".".join(parts[:count]) for count in range(1, len(parts)))
        gone.add(next((head for head in heads if f"{head}." not in kept), name))
    return tuple(sorted(gone))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without timm's warnings of what it leaves out, which is the head."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
