"""Triton kernels that gather, normalize and project rows in one launch, or in two if the sum over D is split.

R rows of hidden states, N images, Q dream queries, M = N Q gathered rows, D language width, C context width.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dreamkit.kernels.query_projection.tiles import tile
from dreamkit.kernels.tensors import accumulation_dtype, unit_stride_rows

FINISH_BLOCK = 256  # columns of one row that one program of `finish` sums


@triton.jit
def project(
    out: tl.tensor,  # (M, C), or the parts (SPLITS, M, C) that `finish` sums
    rstd: tl.tensor,  # (M,), or the sums of squares (SPLITS, M)
    hidden: tl.tensor,
    base: tl.tensor,
    norm_weight: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor | None,
    stride: int,
    weight_stride: int,
    rows: int,
    queries: int,
    dim: int,
    width: int,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Compute a tile of the context, or one part of its sum over D.

    A row is divided by its rms after the product, so that no pass comes before the product. The norm's weight
    multiplies the rows, which are in registers for their squares already, and the matrix stays as it is.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(2)
    is_row, is_column = row < rows, column < width
    source = tl.load(base + row // queries, mask=is_row, other=0) + row % queries
    squares = tl.zeros([ROWS], dtype=rstd.dtype.element_ty)
    total = tl.zeros([ROWS, COLUMNS], dtype=rstd.dtype.element_ty)
    share = tl.cdiv(tl.cdiv(dim, DEPTH), SPLITS) * DEPTH
    for first in range(part * share, tl.minimum(part * share + share, dim), DEPTH):
        k = first + tl.arange(0, DEPTH)
        is_k = k < dim
        x = tl.load(
            hidden + source[:, None] * stride + k[None, :], mask=is_row[:, None] & is_k[None, :], other=0.0
        )
        x = x.to(squares.dtype)
        squares += tl.sum(x * x, axis=1)
        scale = OFFSET + tl.load(norm_weight + k, mask=is_k, other=0.0).to(squares.dtype)
        matrix = tl.load(
            weight + column[None, :].to(tl.int64) * weight_stride + k[:, None],
            mask=is_column[None, :] & is_k[:, None],
            other=0.0,
        )
        x = (x * scale[None, :]).to(matrix.dtype)
        total = tl.dot(x, matrix, total, input_precision="ieee", out_dtype=total.dtype)
    if SPLITS == 1:
        scale = 1 / tl.sqrt(squares / dim + EPS)
        total = total * scale[:, None]
        if bias is not None:
            total += tl.load(bias + column, mask=is_column, other=0.0).to(total.dtype)[None, :]
        squares = scale
    place = (part * rows + row).to(tl.int64)
    mask = is_row[:, None] & is_column[None, :]
    tl.store(out + place[:, None] * width + column[None, :], total.to(out.dtype.element_ty), mask=mask)
    if tl.program_id(1) == 0:
        tl.store(rstd + place, squares, mask=is_row)


@triton.jit
def finish(
    out: tl.tensor,
    rstd: tl.tensor,
    parts: tl.tensor,
    squares: tl.tensor,
    bias: tl.tensor | None,
    rows: int,
    dim: int,
    width: int,
    EPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Sum the parts that `project` wrote, in order, for some columns of one row of the context."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < width
    total = tl.zeros([BLOCK], dtype=rstd.dtype.element_ty)
    square = tl.load(squares + row)
    for part in range(1, SPLITS):
        square += tl.load(squares + part * rows + row)
    for part in range(SPLITS):
        total += tl.load(parts + (part * rows + row) * width + column, mask=is_column, other=0.0)
    scale = 1 / tl.sqrt(square / dim + EPS)
    total = total * scale
    if bias is not None:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(total.dtype)
    tl.store(out + row * width + column, total.to(out.dtype.element_ty), mask=is_column)
    if tl.program_id(1) == 0:
        tl.store(rstd + row, scale)


def query_projection(
    hidden_RD: Tensor,
    base_N: Tensor,
    queries: int,
    norm_weight: Tensor,
    eps: float,
    offset: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the context (N, Q, C) of one dense layer, and 1 / rms of each row (N, Q)."""
    hidden, weight, norm_weight = (
        unit_stride_rows(hidden_RD),
        unit_stride_rows(weight),
        norm_weight.contiguous(),
    )
    bias = None if bias is None else bias.contiguous()
    images, (width, dim) = base_N.shape[0], weight.shape
    rows = images * queries
    chosen = tile(rows, width, dim, weight.dtype)
    context = weight.new_empty(images, queries, width)
    rstd = hidden.new_empty(images, queries, dtype=accumulation_dtype(hidden.dtype))
    is_split = chosen.splits > 1
    parts = rstd.new_empty(chosen.splits, rows, width) if is_split else context
    squares = rstd.new_empty(chosen.splits, rows) if is_split else rstd
    if rows:
        project[(triton.cdiv(rows, chosen.rows), triton.cdiv(width, chosen.columns), chosen.splits)](
            parts,
            squares,
            hidden,
            base_N.contiguous(),
            norm_weight,
            weight,
            bias,
            hidden.stride(0),
            weight.stride(0),
            rows,
            queries,
            dim,
            width,
            EPS=eps,
            OFFSET=offset,
            SPLITS=chosen.splits,
            ROWS=chosen.rows,
            COLUMNS=chosen.columns,
            DEPTH=chosen.depth,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
    if rows and is_split:
        finish[(rows, triton.cdiv(width, FINISH_BLOCK))](
            context,
            rstd,
            parts,
            squares,
            bias,
            rows,
            dim,
            width,
            EPS=eps,
            SPLITS=chosen.splits,
            BLOCK=FINISH_BLOCK,
        )
    return context, rstd
