"""Fewer vision tokens: neighbours on their grid become one, which an encoder offers by taking `PoolingConfig`.

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
    """`pool` x `pool` neighbouring tokens become one; 1 leaves them as they are.

    `pooling`: "mean" averages them. "pixel-shuffle" puts them one after the other, row by row, so that nothing is lost
    and the token is `pool` ** 2 times as wide (InternVL, arXiv 2404.16821; SmolVLM, arXiv 2504.05299).
    """

    pool: int = 1
    pooling: Literal["mean", "pixel-shuffle"] = "mean"

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ConfigError({"pool": f"{self.pool} found, but a token is made of at least 1 x 1"})

    def pooled_shape(self, grid: tuple[int, int], dim: int) -> tuple[int, int]:
        """The number of tokens that are left of a `grid` (rows, columns) of tokens `dim` wide, and their width.

        Raises:
            ConfigError: `pool` does not divide the grid.
        """
        rows, columns = grid
        if rows % self.pool or columns % self.pool:
            fitting = [
                str(pool) for pool in range(1, min(grid) + 1) if not rows % pool and not columns % pool
            ]
            raise ConfigError(
                {
                    "pool": f"{self.pool} does not divide the grid of {rows} x {columns} tokens; "
                    f"give {_any_of(fitting)}, or another image_size"
                }
            )
        width = dim * self.pool**2 if self.pooling == "pixel-shuffle" else dim
        return (rows // self.pool) * (columns // self.pool), width

    def pooled(self, tokens_NVd: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (N, V, d) of a `grid` (rows, columns), row by row -> fewer tokens, of the same order."""
        if self.pool == 1:
            return tokens_NVd
        sizes = {"h": grid[0] // self.pool, "p": self.pool, "q": self.pool}
        if self.pooling == "mean":
            return reduce(tokens_NVd, "n (h p w q) d -> n (h w) d", "mean", **sizes)
        return rearrange(tokens_NVd, "n (h p w q) d -> n (h w) (p q d)", **sizes)


def _any_of(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
