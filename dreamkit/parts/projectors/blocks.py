"""What projectors share: initial weights, heads of attention, and layers that can be computed again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamkit.errors import ConfigError
from dreamkit.parts.projector import Projector

INIT_STD = 0.02  # of normal weights, as in LLaMA
HEAD_DIM = (
    64  # of a head, where the number of heads is not said: as in most language models and vision encoders
)


def initialised(layer: nn.Linear, std: float = INIT_STD) -> nn.Linear:
    """`layer` with normal weights and a bias of zeros."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def refuse_below_one(config: Any, *names: str) -> None:
    """
    Raises:
        ConfigError: those of the named settings that are below 1.
    """
    values = {name: getattr(config, name) for name in names}
    wrong = {name: value for name, value in values.items() if value is not None and value < 1}
    if wrong:
        raise ConfigError({name: f"{value} found, but it is at least 1" for name, value in wrong.items()})


def head_count(width: int, heads: int | None, even: bool = False) -> int:
    """`heads`, which share out `width` evenly; None: heads of 64, or the nearest greater size that does.

    `even`: each head's share is even too.

    Raises:
        ConfigError: they do not.
    """
    unit = 2 if even else 1
    fitting = [count for count in range(1, width + 1) if width % (count * unit) == 0]
    if not fitting:
        raise ConfigError(
            {"width": f"{width}, but rotary positions turn pairs of numbers; set it to {width + 1}"}
        )
    if heads is None:
        return max(count for count in fitting if count <= max(1, width // HEAD_DIM))
    if heads not in fitting:
        nearest = min(fitting, key=lambda count: abs(count - heads))
        share = "share, an even one," if even else "share"
        raise ConfigError(
            {
                "heads": f"{heads} found, but each has the same {share} of a width of {width}; set it to {nearest}"
            }
        )
    return heads


def split_heads(tokens_NTD: Tensor, heads: int) -> Tensor:
    """(N, T, width) -> (N, heads, T, width / heads)."""
    return tokens_NTD.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """(N, heads, T, width / heads) -> (N, T, width)."""
    return tokens.transpose(1, 2).flatten(2)


class DeepProjector(Projector):
    """A projector of layers whose activations can be computed again in the backward pass."""

    recomputes = False

    def enable_gradient_checkpointing(self) -> None:
        self.recomputes = True

    def through(self, layers: Iterable[nn.Module], tokens: Tensor, *beside: Tensor) -> Tensor:
        """`tokens` after all `layers`, each of which is given `beside` too."""
        for layer in layers:
            if self.recomputes and torch.is_grad_enabled():
                # no layer draws random numbers, so there is no state of generators to keep
                tokens = checkpoint(layer, tokens, *beside, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = layer(tokens, *beside)
        return tokens
