"""Projectors made of matrices: they keep the number of tokens and change their width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from torch import Tensor, nn

from dreamkit.errors import ConfigError
from dreamkit.parts.projector import Projector
from dreamkit.parts.projectors.blocks import initialised
from dreamkit.parts.specs import ProjectorSpec


class Linear(Projector):
    """One matrix: (N, T, in_dim) -> (N, T, out_dim)."""

    @dataclass(frozen=True)
    class Config:
        """`bias`: whether a learned vector is added."""

        bias: bool = True

    def __init__(self, config: Linear.Config, spec: ProjectorSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.layer = initialised(nn.Linear(spec.in_dim, spec.out_dim, bias=config.bias))

    @classmethod
    def infer_spec(cls, config: Linear.Config, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=in_tokens)

    @classmethod
    def from_config(cls, config: Linear.Config, spec: ProjectorSpec) -> Self:
        return cls(config, spec)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens)

    def dense_layers(self) -> Sequence[nn.Linear]:
        return (self.layer,)


class MLP(Projector):
    """`depth` matrices, GELU between them: (N, T, in_dim) -> (N, T, out_dim)."""

    @dataclass(frozen=True)
    class Config:
        """`depth`: number of matrices. `hidden_dim`: width between them, the output's where it is None."""

        depth: int = 2
        bias: bool = True
        hidden_dim: int | None = None

        def __post_init__(self) -> None:
            wrong = {}
            if self.depth < 1:
                wrong["depth"] = f"{self.depth} found, but an MLP has at least 1 matrix"
            if self.hidden_dim is not None and self.hidden_dim < 1:
                wrong["hidden_dim"] = f"{self.hidden_dim} found, but a width is at least 1"
            if wrong:
                raise ConfigError(wrong)

    def __init__(self, config: MLP.Config, spec: ProjectorSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        hidden = spec.out_dim if config.hidden_dim is None else config.hidden_dim
        widths = [spec.in_dim, *[hidden] * (config.depth - 1), spec.out_dim]
        self.layers = nn.ModuleList(
            initialised(nn.Linear(a, b, bias=config.bias)) for a, b in pairwise(widths)
        )

    @classmethod
    def infer_spec(cls, config: MLP.Config, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=in_tokens)

    @classmethod
    def from_config(cls, config: MLP.Config, spec: ProjectorSpec) -> Self:
        return cls(config, spec)

    def forward(self, tokens: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens if index == 0 else nn.functional.gelu(tokens))
        return tokens

    def dense_layers(self) -> Sequence[nn.Linear]:
        return tuple(layer for layer in self.layers if isinstance(layer, nn.Linear))
