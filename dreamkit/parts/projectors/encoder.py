"""A bidirectional transformer over the tokens, which ends in a norm at the scale that the decoder expects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamkit.parts.projectors.blocks import (
    DeepProjector,
    check_positive,
    head_count,
    init_linear,
    merge_heads,
    split_heads,
)
from dreamkit.parts.specs import ProjectorSpec

# Constants of MetaQuery's published code (arXiv 2504.06256), whose layers are Qwen2's.
ENCODER_STD = 0.014
EXPANSION = 4
ROTARY_BASE = 10_000.0
NORM_EPS = 1e-6
OUT_NORM_EPS = 1e-5


class Encoder(DeepProjector):
    """MetaQuery's connector (arXiv 2504.06256, section 3.2): (N, T, in_dim) -> (N, T, out_dim).

    In its `depth` layers, every token attends to all with rotary positions (arXiv 2104.09864). Two linear layers with
    GELU between them and an RMS norm follow. The norm's trained weight starts at `spec.out_rms`: at first, the
    output has the root mean square that the decoder expects, at any scale of the input.
    """

    @dataclass(frozen=True)
    class Config:
        """The recipe section of `encoder`. The default `depth` is MetaQuery's.

        Attributes:
            depth: number of layers.
            width: width of the layers; None is the input's. Another width adds a linear layer before them, which the
                published connector does not have.
            heads: number of attention heads; None is heads of width 64.

        Raises:
            ConfigError: a setting outside the bounds of `check_positive`, an odd `width`, or `heads` does not divide
                half of `width`.
        """

        depth: int = 24
        width: int | None = None
        heads: int | None = None

        def __post_init__(self) -> None:
            check_positive(self, "depth", "width", "heads")
            if self.width is not None:
                head_count(self.width, self.heads, even=True)

    def __init__(self, config: Encoder.Config, spec: ProjectorSpec) -> None:
        super().__init__(config, spec)
        width, out_dim = _width(config, spec.in_dim), spec.out_dim
        heads = head_count(width, config.heads, even=True)
        self.in_layer = None if config.width is None else init_linear(nn.Linear(spec.in_dim, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(config.depth))
        self.out_layers = nn.Sequential(
            nn.Linear(width, out_dim), nn.GELU(approximate="tanh"), nn.Linear(out_dim, out_dim)
        )
        self.norm = _RMSNorm(out_dim, OUT_NORM_EPS, spec.out_rms)
        self.head_dim = width // heads

    @classmethod
    def tiny_config(cls) -> Encoder.Config:
        return cls.Config(depth=2, width=16, heads=2)

    @classmethod
    def infer_spec(
        cls, config: Encoder.Config, *, in_dim: int, in_tokens: int, out_dim: int
    ) -> ProjectorSpec:
        head_count(_width(config, in_dim), config.heads, even=True)
        return super().infer_spec(config, in_dim=in_dim, in_tokens=in_tokens, out_dim=out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = tokens if self.in_layer is None else self.in_layer(tokens)
        hidden = self.run_layers(self.layers, hidden, *_rotations(hidden, self.head_dim))
        return self.norm(self.out_layers(hidden))


def _width(config: Encoder.Config, in_dim: int) -> int:
    return in_dim if config.width is None else config.width


def _rotations(tokens_NTD: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Compute the cosine and sine (T, head_dim) of the angles of each position, in float32 or more."""
    dtype, device = torch.promote_types(tokens_NTD.dtype, torch.float32), tokens_NTD.device
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=dtype, device=device) / head_dim)
    positions = torch.arange(tokens_NTD.shape[1], dtype=dtype, device=device)
    angles = torch.outer(positions, frequencies).repeat(1, 2)
    return angles.cos().to(tokens_NTD.dtype), angles.sin().to(tokens_NTD.dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


class _RMSNorm(nn.Module):
    """An RMS norm: tokens / rms(tokens) * weight."""

    def __init__(self, dim: int, eps: float = NORM_EPS, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight * torch.ones(dim))
        self.eps = eps

    def forward(self, tokens: Tensor) -> Tensor:
        return F.rms_norm(tokens, tokens.shape[-1:], eps=self.eps) * self.weight


class _HeadNorm(nn.Module):
    """A norm of each head of (N, heads, T, dim) to a root mean square of 1, times the head's own weight."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, 1, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) * self.weight * tokens.shape[-1] ** 0.5


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()

        def linear(in_dim: int, out_dim: int, bias: bool = False) -> nn.Linear:
            return init_linear(nn.Linear(in_dim, out_dim, bias=bias), ENCODER_STD)

        self.heads = heads
        self.attention_norm, self.feed_norm = _RMSNorm(width), _RMSNorm(width)
        self.query, self.key, self.value = (linear(width, width, bias=True) for _ in range(3))
        self.query_norm, self.key_norm = (_HeadNorm(heads, width // heads) for _ in range(2))
        self.out = linear(width, width)
        self.gate, self.up = linear(width, EXPANSION * width), linear(width, EXPANSION * width)
        self.down = linear(EXPANSION * width, width)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.attention_norm(tokens)
        query, key, value = (
            split_heads(layer(normed), self.heads) for layer in (self.query, self.key, self.value)
        )
        query = self.query_norm(_rotate(query, cos, sin))
        key = self.key_norm(_rotate(key, cos, sin))
        tokens = tokens + self.out(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        normed = self.feed_norm(tokens)
        return tokens + self.down(F.silu(self.gate(normed)) * self.up(normed))
