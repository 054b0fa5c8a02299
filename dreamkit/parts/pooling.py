"""Pooling of vision tokens: neighbours on their grid become one token. An encoder offers it with `PoolingConfig`.

N images, V tokens, d their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from einops import rearrange, reduce
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.parts.specs import PartConfig


@dataclass(frozen=True, kw_only=True)
class PoolingConfig(PartConfig):
    """The recipe section of a vision encoder that can pool its tokens.

    Attributes:
        pool: side of the square of neighbouring tokens that become one; 1 leaves the tokens as they are.
        pooling: "mean" averages the square. "pixel-shuffle" concatenates its tokens, row by row: no value is lost, and
            the token is `pool` ** 2 times as wide (InternVL 1.5, arXiv 2404.16821; SmolVLM, arXiv 2504.05299).

    Raises:
        ConfigError: `pool` is below 1.
    """

    pool: int = 1
    pooling: Literal["mean", "pixel-shuffle"] = "mean"

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ConfigError({"pool": f"expected at least 1, got {self.pool}"})

    def pooled_shape(self, grid: tuple[int, int], dim: int) -> tuple[int, int]:
        """Return the number of tokens that pooling leaves of a `grid` (rows, columns) of width `dim`, and their width.

        Raises:
            ConfigError: `pool` does not divide the grid.
        """
        rows, columns = grid
        if rows % self.pool or columns % self.pool:
            divisors = [
                str(pool) for pool in range(1, min(grid) + 1) if not rows % pool and not columns % pool
            ]
            raise ConfigError(
                {
                    "pool": f"expected a divisor of the {rows} x {columns} grid of tokens, got {self.pool}; "
                    f"set it to one of {', '.join(divisors)} or change image_size"
                }
            )
        width = dim * self.pool**2 if self.pooling == "pixel-shuffle" else dim
        return (rows // self.pool) * (columns // self.pool), width

    def pooled(self, tokens_NVd: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pool tokens (N, V, d) of a `grid` (rows, columns), in row order; return fewer tokens, in row order."""
        if self.pool == 1:
            return tokens_NVd
        sizes = {"h": grid[0] // self.pool, "p": self.pool, "q": self.pool}
        if self.pooling == "mean":
            return reduce(tokens_NVd, "n (h p w q) d -> n (h w) d", "mean", **sizes)
        return rearrange(tokens_NVd, "n (h p w q) d -> n (h w) (p q d)", **sizes)
