"""Learned latents that look at the tokens: any number of tokens becomes a number that the recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamkit.parts.projectors.blocks import (
    DeepProjector,
    head_count,
    initialised,
    merge_heads,
    refuse_below_one,
    split_heads,
)
from dreamkit.parts.specs import ProjectorSpec

EXPANSION = 4  # of the feed-forward network, as in Flamingo


class Resampler(DeepProjector):
    """Flamingo's Perceiver resampler (arXiv 2204.14198, section 2.1): (N, T, in_dim) -> (N, tokens, out_dim).

    In each block the latents attend to the tokens and to each other, then go through a feed-forward network; both take
    what they read through a norm, and add to the latents. GELU stands for the paper's squared ReLU, as in OpenFlamingo.
    What the paper has no need of, since its widths are equal: a matrix before the blocks and one after the final norm.
    """

    @dataclass(frozen=True)
    class Config:
        """`tokens` that come out; `depth` in blocks; `width` between the two matrices, of the narrower neighbour where
        it is None; `heads`, of 64 each where it is None."""

        tokens: int = 64
        depth: int = 6
        width: int | None = None
        heads: int | None = None

        def __post_init__(self) -> None:
            refuse_below_one(self, "tokens", "depth", "width", "heads")
            if self.width is not None:
                head_count(self.width, self.heads)

    def __init__(self, config: Resampler.Config, spec: ProjectorSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        width = _width(config, spec.in_dim, spec.out_dim)
        heads = head_count(width, config.heads)
        self.in_layer = initialised(nn.Linear(spec.in_dim, width))
        self.latents = nn.Parameter(torch.randn(config.tokens, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.out_layer = initialised(nn.Linear(width, spec.out_dim))

    @classmethod
    def tiny_config(cls) -> Resampler.Config:
        return cls.Config(tokens=4, depth=2, width=16, heads=2)

    @classmethod
    def infer_spec(
        cls, config: Resampler.Config, *, in_dim: int, in_tokens: int, out_dim: int
    ) -> ProjectorSpec:
        head_count(_width(config, in_dim, out_dim), config.heads)
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=config.tokens)

    @classmethod
    def from_config(cls, config: Resampler.Config, spec: ProjectorSpec) -> Self:
        return cls(config, spec)

    def forward(self, tokens: Tensor) -> Tensor:
        latents = self.latents.expand(len(tokens), -1, -1)
        latents = self.through(self.blocks, latents, self.in_layer(tokens))
        return self.out_layer(self.norm(latents))


def _width(config: Resampler.Config, in_dim: int, out_dim: int) -> int:
    return min(in_dim, out_dim) if config.width is None else config.width


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.tokens_norm, self.latents_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = initialised(nn.Linear(width, width, bias=False))
        self.key = initialised(nn.Linear(width, width, bias=False))
        self.value = initialised(nn.Linear(width, width, bias=False))
        self.out = initialised(nn.Linear(width, width, bias=False))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            initialised(nn.Linear(width, EXPANSION * width, bias=False)),
            nn.GELU(),
            initialised(nn.Linear(EXPANSION * width, width, bias=False)),
        )

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        asking = self.latents_norm(latents)
        seen = torch.cat([self.tokens_norm(tokens), asking], dim=1)
        query, key, value = (
            split_heads(layer(given), self.heads)
            for layer, given in ((self.query, asking), (self.key, seen), (self.value, seen))
        )
        latents = latents + self.out(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        return latents + self.feed_forward(latents)
