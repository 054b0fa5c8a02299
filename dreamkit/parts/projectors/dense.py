"""Projectors of linear layers alone: they change the width of tokens, not their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from dreamkit.parts.projectors.blocks import CoreProjector, check_positive, init_linear
from dreamkit.parts.specs import ProjectorSpec


class Linear(CoreProjector):
    """One linear layer: (N, T, in_dim) -> (N, T, out_dim)."""

    @dataclass(frozen=True)
    class Config:
        """The recipe section of `linear`. `bias`: add a trained vector."""

        bias: bool = True

    def __init__(self, config: Linear.Config, spec: ProjectorSpec) -> None:
        super().__init__(config, spec)
        self.layer = init_linear(nn.Linear(spec.in_dim, spec.out_dim, bias=config.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens)

    def dense_layers(self) -> Sequence[nn.Linear]:
        return (self.layer,)


class MLP(CoreProjector):
    """`depth` linear layers with GELU between them: (N, T, in_dim) -> (N, T, out_dim)."""

    @dataclass(frozen=True)
    class Config:
        """The recipe section of `mlp`.

        Attributes:
            depth: number of linear layers.
            bias: add a trained vector in each layer.
            hidden_dim: width between layers; None is the output's.

        Raises:
            ConfigError: `depth` or `hidden_dim` is outside the bounds of `check_positive`.
        """

        depth: int = 2
        bias: bool = True
        hidden_dim: int | None = None

        def __post_init__(self) -> None:
            check_positive(self, "depth", "hidden_dim")

    def __init__(self, config: MLP.Config, spec: ProjectorSpec) -> None:
        super().__init__(config, spec)
        hidden = spec.out_dim if config.hidden_dim is None else config.hidden_dim
        widths = [spec.in_dim, *[hidden] * (config.depth - 1), spec.out_dim]
        self.layers = nn.ModuleList(
            init_linear(nn.Linear(a, b, bias=config.bias)) for a, b in pairwise(widths)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens if index == 0 else nn.functional.gelu(tokens))
        return tokens

    def dense_layers(self) -> Sequence[nn.Linear]:
        return tuple(layer for layer in self.layers if isinstance(layer, nn.Linear))
