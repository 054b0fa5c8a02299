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
    """A part that maps tokens of one width to tokens of another. Its neighbours set its widths, never the recipe."""

    spec: ProjectorSpec

    @classmethod
    @abstractmethod
    def infer_spec(cls, config: Any, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        """Return the spec between neighbours of these sizes; `config` decides the number of output tokens.

        Leave out `out_rms`: dreamkit sets it.

        Raises:
            ConfigError: `config` does not fit the neighbours, by the keys of `config`.
        """

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any, spec: ProjectorSpec) -> Self:
        """Build the projector with random weights from torch's global generator, in float32."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, in_tokens, in_dim) to tokens (N, out_tokens, out_dim)."""

    def dense_layers(self) -> Sequence[nn.Linear] | None:
        """Return the linear layers in order if the projector is only these with GELU between them, else None.

        A fused kernel computes the projection from them. The default is None.
        """
        return None
