"""Choice of the fused projection, and of the share of one of its programs.

M rows, D language width, C context width. The choice depends on sizes and dtypes, not on the device, so that every run
has the same result.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

FUSED_ROWS: Final = 256  # 4 images of 64 queries
PROGRAMS: Final = 128  # about as many as multiprocessors of an A100 (108) or an H100 (132)
LEAST_DEPTHS: Final = 4  # fewest steps over D that are worth a program


class Tile(NamedTuple):
    """Share of one program: `rows` x `columns` of the context, `depth` of D at a time, D in `splits` parts."""

    rows: int
    columns: int
    depth: int
    splits: int
    warps: int
    stages: int


def is_fused(rows: int, hidden: torch.dtype, weight: torch.dtype) -> bool:
    """Return True if one kernel gathers, normalizes and projects; else the product is torch's.

    Few rows leave most of a GPU idle unless the sum over D is split. Their time is that of launches and of reading the
    matrix. For many rows the product dominates, and the GPU's library computes it best. float16 is not fused, because
    a row that is scaled before it is divided by its rms can leave the range of float16. float64 is not fused, because
    Triton cannot multiply it.
    """
    is_supported = weight not in (torch.float16, torch.float64) and hidden != torch.float64
    return rows <= FUSED_ROWS and is_supported


def tile(rows: int, width: int, dim: int, dtype: torch.dtype) -> Tile:
    """Choose the tile for M `rows`, C `width` and D `dim`; the sum is split to make about `PROGRAMS` programs."""
    if dtype.itemsize == 2:
        size, columns, depth, warps, stages = 64, 64, 64, 4, 4
    else:  # no tensor cores: float32 is not rounded to TF32
        size, columns, depth, warps, stages = 32, 32, 32, 4, 3
    if rows <= 16:
        size = 16
    programs = -(-rows // size) * -(-width // columns)
    most_splits = max(1, -(-dim // depth) // LEAST_DEPTHS)
    splits = max(1, min(PROGRAMS // max(1, programs), most_splits))
    return Tile(size, columns, depth, splits, warps, stages)
