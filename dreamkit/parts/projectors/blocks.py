"""Shared tools of projectors: initial weights, attention heads and gradient checkpointing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamkit.errors import ConfigError
from dreamkit.parts.projector import Projector
from dreamkit.parts.specs import ProjectorSpec

INIT_STD = 0.02  # standard deviation of initial weights: LLaMA's `initializer_range` in transformers
MAX_DEPTH = 1000  # layers: above any published network, and built within seconds
MAX_WIDTH = 2**20  # tokens, heads and widths: one matrix of this width would have 10^12 weights
HEAD_DIM = 64  # default width of a head, as in CLIP's vision encoders (arXiv 2103.00020)


def init_linear(layer: nn.Linear, std: float = INIT_STD) -> nn.Linear:
    """Set the weights of `layer` to normal samples and its bias to zeros; return it."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def check_positive(config: Any, *names: str) -> None:
    """Check that the named settings of `config` are None or at least 1, and at most 1000 (`depth`) or 2^20 (others).

    Raises:
        ConfigError: settings outside these bounds, all at once.
    """
    problems = {}
    for name in names:
        value, most = getattr(config, name), MAX_DEPTH if name == "depth" else MAX_WIDTH
        if value is not None and not 1 <= value <= most:
            problems[name] = f"expected {'at least 1' if value < 1 else f'at most {most}'}, got {value}"
    if problems:
        raise ConfigError(problems)


def head_count(width: int, heads: int | None, even: bool = False) -> int:
    """Return the number of attention heads that divide `width`: `heads`, or for None a default.

    The default has heads of width 64, or of the next greater width that fits. If `even`, the width of a head is even.

    Raises:
        ConfigError: `heads` does not divide `width`, or `even` and `width` is odd.
    """
    if even and width % 2:
        raise ConfigError(
            {
                "width": f"expected an even number (rotary positions turn pairs), got {width}; set it to {width + 1}"
            }
        )
    whole = width // 2 if even else width
    small = [count for count in range(1, math.isqrt(whole) + 1) if whole % count == 0]
    divisors = sorted({*small, *(whole // count for count in small)})
    if heads is None:
        return max(count for count in divisors if count <= max(1, width // HEAD_DIM))
    if heads not in divisors:
        nearest = min(divisors, key=lambda count: abs(count - heads))
        dividend = f"half the width {width}" if even else f"the width {width}"
        raise ConfigError({"heads": f"expected a divisor of {dividend}, got {heads}; set it to {nearest}"})
    return heads


def split_heads(tokens_NTD: Tensor, heads: int) -> Tensor:
    """Reshape (N, T, width) to (N, heads, T, width / heads)."""
    return tokens_NTD.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """Reshape (N, heads, T, width / heads) to (N, T, width)."""
    return tokens.transpose(1, 2).flatten(2)


class CoreProjector(Projector):
    """A projector that its constructor builds. It keeps the number of tokens, unless it overrides `infer_spec`."""

    def __init__(self, config: Any, spec: ProjectorSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec

    @classmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        """Return a spec with as many output tokens as input tokens."""
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=in_tokens)

    @classmethod
    def from_config(cls, config: Any, spec: ProjectorSpec) -> Self:
        """Build the projector with random weights from torch's global generator."""
        return cls(config, spec)


class DeepProjector(CoreProjector):
    """A projector whose layers can recompute their activations in the backward pass."""

    recomputes = False

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of each layer in the backward pass."""
        self.recomputes = True

    def run_layers(self, layers: Iterable[nn.Module], tokens: Tensor, *inputs: Tensor) -> Tensor:
        """Run `tokens` (N, T, width) through `layers` in order; each also gets `inputs`."""
        for layer in layers:
            if self.recomputes and torch.is_grad_enabled():
                # The layers use no random numbers, so no generator's state has to be restored.
                tokens = checkpoint(layer, tokens, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = layer(tokens, *inputs)
        return tokens
