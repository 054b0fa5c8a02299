"""The interface of a projector.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from dreamkit.parts.part import Part
from dreamkit.parts.specs import ProjectorSpec


class Projector(Part):
    """Tokens of one width to tokens of another. Its widths come from its neighbours, never from the recipe."""

    spec: ProjectorSpec

    @classmethod
    @abstractmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        """The spec between neighbours of these widths, the number of output tokens decided by `config`."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any, spec: ProjectorSpec) -> Self:
        """The projector with random weights from torch's global generator."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """(N, in_tokens, in_dim) -> (N, out_tokens, out_dim)."""

    def dense_layers(self) -> Sequence[nn.Linear] | None:
        """Its matrices in order, GELU between them, where it is nothing else; None otherwise."""
        return None
