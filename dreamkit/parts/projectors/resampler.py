"""Trained latents that attend to the tokens: they turn any number of tokens into a number set in the recipe."""

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

EXPANSION = 4  # width of the feed-forward network over that of the latents (arXiv 2204.14198, appendix A)


class Resampler(DeepProjector):
    """Flamingo's Perceiver resampler (arXiv 2204.14198, section 2.1): (N, T, in_dim) -> (N, tokens, out_dim).

    In each block, the latents attend to the tokens and to each other, then pass a feed-forward network. Both norm
    their inputs and add their outputs to the latents. GELU replaces the paper's squared ReLU, as in OpenFlamingo. A
    linear layer before the blocks and one after the final norm are not in the paper, whose widths are equal.
    """

    @dataclass(frozen=True)
    class Config:
        """The recipe section of `resampler`. Defaults of `tokens` and `depth` are Flamingo's.

        Attributes:
            tokens: number of output tokens.
            depth: number of blocks.
            width: width of the blocks; None is that of the narrower neighbour.
            heads: number of attention heads; None is heads of width 64.

        Raises:
            ConfigError: a setting outside the bounds of `check_positive`, or `heads` does not divide `width`.
        """

        tokens: int = 64
        depth: int = 6
        width: int | None = None
        heads: int | None = None

        def __post_init__(self) -> None:
            check_positive(self, "tokens", "depth", "width", "heads")
            if self.width is not None:
                head_count(self.width, self.heads)

    def __init__(self, config: Resampler.Config, spec: ProjectorSpec) -> None:
        super().__init__(config, spec)
        width = _width(config, spec.in_dim, spec.out_dim)
        heads = head_count(width, config.heads)
        self.in_layer = init_linear(nn.Linear(spec.in_dim, width))
        self.latents = nn.Parameter(torch.randn(config.tokens, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.out_layer = init_linear(nn.Linear(width, spec.out_dim))

    @classmethod
    def tiny_config(cls) -> Resampler.Config:
        return cls.Config(tokens=4, depth=2, width=16, heads=2)

    @classmethod
    def infer_spec(
        cls, config: Resampler.Config, *, in_dim: int, in_tokens: int, out_dim: int
    ) -> ProjectorSpec:
        head_count(_width(config, in_dim, out_dim), config.heads)
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=config.tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        latents = self.latents.expand(len(tokens), -1, -1)
        latents = self.run_layers(self.blocks, latents, self.in_layer(tokens))
        return self.out_layer(self.norm(latents))


def _width(config: Resampler.Config, in_dim: int, out_dim: int) -> int:
    return min(in_dim, out_dim) if config.width is None else config.width


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.tokens_norm, self.latents_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = init_linear(nn.Linear(width, width, bias=False))
        self.key = init_linear(nn.Linear(width, width, bias=False))
        self.value = init_linear(nn.Linear(width, width, bias=False))
        self.out = init_linear(nn.Linear(width, width, bias=False))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            init_linear(nn.Linear(width, EXPANSION * width, bias=False)),
            nn.GELU(),
            init_linear(nn.Linear(EXPANSION * width, width, bias=False)),
        )

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        normed = self.latents_norm(latents)
        attended = torch.cat([self.tokens_norm(tokens), normed], dim=1)
        query, key, value = (
            split_heads(layer(source), self.heads)
            for layer, source in ((self.query, normed), (self.key, attended), (self.value, attended))
        )
        latents = latents + self.out(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        return latents + self.feed_forward(latents)
