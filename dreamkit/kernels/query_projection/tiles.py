"""How much one program of the fused projection computes, and when it is used at all.

M rows, D language width, C context width. These are functions of sizes and dtypes alone, not of the device, so that a
result is the same on every run.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

FUSED_ROWS: Final = 256  # 4 images of 64 queries
PROGRAMS: Final = 128  # about the multiprocessors of an A100 (108) or an H100 (132)
LEAST_DEPTHS: Final = 4  # steps of the sum over D that are worth a program


class Tile(NamedTuple):
    """`rows` x `columns` of the context a program, `depth` of D at a time, the sum over D in `splits` parts."""

    rows: int
    columns: int
    depth: int
    splits: int
    warps: int
    stages: int


def is_fused(rows: int, hidden: torch.dtype, weight: torch.dtype) -> bool:
    """Whether one kernel gathers, norms and projects; otherwise one gathers and norms, and torch's product follows.

    Few rows leave most of a GPU idle unless the sum over D is split, and are bound by launches and by reading the
    matrix; with many, the product dominates, which the vendor's library does best. float16 is not fused: a row that
    is scaled before it is divided by its rms can leave float16's range. Nor is float64, which Triton cannot multiply.
    """
    fits = weight not in (torch.float16, torch.float64) and hidden != torch.float64
    return rows <= FUSED_ROWS and fits


def tile(rows: int, width: int, dim: int, dtype: torch.dtype) -> Tile:
    """The tile for M `rows`, C `width` and D `dim`: the sum is split until there are about `PROGRAMS` programs."""
    if dtype.itemsize == 2:
        size, columns, depth, warps, stages = 64, 64, 64, 4, 4
    else:  # no tensor cores: float32 is not rounded to TF32
        size, columns, depth, warps, stages = 32, 32, 32, 4, 3
    if rows <= 16:
        size = 16
    programs = -(-rows // size) * -(-width // columns)
    most = max(1, -(-dim // depth) // LEAST_DEPTHS)
    splits = max(1, min(PROGRAMS // max(1, programs), most))
    return Tile(size, columns, depth, splits, warps, stages)
