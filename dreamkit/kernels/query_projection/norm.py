"""Triton kernels that gather and normalize rows, and compute the gradients, in one launch each.

The gradient of the norm's weight also takes a sum.

R rows of hidden states, N images, Q dream queries, M = N Q gathered rows, D language width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamkit.kernels.tensors import accumulation_dtype, unit_stride_rows

WEIGHT_ROWS, WEIGHT_COLUMNS = 32, 128  # read by one program of `sum_norm_weight` at a time
WEIGHT_SPLITS = 32  # programs that share the rows of a block of columns


@triton.jit
def norm_rows(
    states: tl.tensor,
    rstd: tl.tensor,
    hidden: tl.tensor,
    base: tl.tensor,
    norm_weight: tl.tensor,
    stride: int,
    queries: int,
    dim: int,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Gather and normalize one row."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    source = tl.load(base + row // queries) + row % queries
    x = tl.load(hidden + source * stride + column, mask=inside, other=0.0).to(rstd.dtype.element_ty)
    scale = 1 / tl.sqrt(tl.sum(x * x, axis=0) / dim + EPS)
    factor = OFFSET + tl.load(norm_weight + column, mask=inside, other=0.0).to(x.dtype)
    y = x * scale * factor
    tl.store(states + row.to(tl.int64) * dim + column, y.to(states.dtype.element_ty), mask=inside)
    tl.store(rstd + row, scale)


@triton.jit
def scatter_rows(
    grad_hidden: tl.tensor,
    grad: tl.tensor,
    hidden: tl.tensor,
    base: tl.tensor,
    norm_weight: tl.tensor,
    rstd: tl.tensor,
    stride: int,
    images: int,
    queries: int,
    dim: int,
    OFFSET: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Compute the gradient of one row of the hidden states, in the program of the first image with this row.

    Images with the same block, such as dropped ones, share the row. Their gradients are summed in the order of the
    images, then pass through the norm once.
    """
    row = tl.program_id(0)
    image, query = row // queries, row % queries
    every = tl.arange(0, IMAGES)
    starts = tl.load(base + every, mask=every < images, other=0)
    start = tl.sum(tl.where(every == image, starts, 0), axis=0)  # a second load would spill registers
    sharing = (starts == start) & (every < images)
    if tl.min(tl.where(sharing, every, IMAGES), axis=0) == image:
        column = tl.arange(0, BLOCK)
        inside = column < dim
        g = tl.load(grad + row.to(tl.int64) * dim + column, mask=inside, other=0.0).to(rstd.dtype.element_ty)
        other = tl.min(tl.where(sharing & (every > image), every, IMAGES), axis=0)
        while other < IMAGES:
            from_other = grad + (other * queries + query).to(tl.int64) * dim + column
            g += tl.load(from_other, mask=inside, other=0.0).to(g.dtype)
            other = tl.min(tl.where(sharing & (every > other), every, IMAGES), axis=0)
        place = start + query
        scale = tl.load(rstd + row)
        x = tl.load(hidden + place * stride + column, mask=inside, other=0.0).to(g.dtype) * scale
        g = g * (OFFSET + tl.load(norm_weight + column, mask=inside, other=0.0).to(g.dtype))
        g = scale * (g - x * (tl.sum(g * x, axis=0) / dim))
        tl.store(grad_hidden + place * dim + column, g.to(grad_hidden.dtype.element_ty), mask=inside)


@triton.jit
def sum_norm_weight(
    parts: tl.tensor,
    grad: tl.tensor,
    hidden: tl.tensor,
    base: tl.tensor,
    rstd: tl.tensor,
    stride: int,
    rows: int,
    queries: int,
    dim: int,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Sum columns of the gradient of the norm's weight over some of the rows: one of the parts (SPLITS, D)."""
    part = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < dim
    total = tl.zeros([COLUMNS], dtype=parts.dtype.element_ty)
    share = tl.cdiv(tl.cdiv(rows, ROWS), SPLITS) * ROWS
    for first in range(part * share, tl.minimum(part * share + share, rows), ROWS):
        row = first + tl.arange(0, ROWS)
        is_row = row < rows
        source = tl.load(base + row // queries, mask=is_row, other=0) + row % queries
        mask = is_row[:, None] & is_column[None, :]
        g = tl.load(grad + row.to(tl.int64)[:, None] * dim + column[None, :], mask=mask, other=0.0)
        x = tl.load(hidden + source[:, None] * stride + column[None, :], mask=mask, other=0.0)
        scale = tl.load(rstd + row, mask=is_row, other=0.0)
        total += tl.sum(g.to(total.dtype) * x.to(total.dtype) * scale[:, None], axis=0)
    tl.store(parts + part * dim + column, total, mask=is_column)


def query_states(
    hidden_RD: Tensor,
    base_N: Tensor,
    queries: int,
    norm_weight: Tensor,
    eps: float,
    offset: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Compute the normalized rows (N, Q, D) and 1 / rms of each (N, Q), like the reference."""
    hidden = unit_stride_rows(hidden_RD)
    images, dim = base_N.shape[0], hidden.shape[1]
    states = hidden.new_empty(images, queries, dim, dtype=dtype)
    rstd = hidden.new_empty(images, queries, dtype=accumulation_dtype(hidden.dtype))
    if images:
        norm_rows[(images * queries,)](
            states,
            rstd,
            hidden,
            base_N.contiguous(),
            norm_weight.contiguous(),
            hidden.stride(0),
            queries,
            dim,
            EPS=eps,
            OFFSET=offset,
            **_row_options(dim),
        )
    return states, rstd


def hidden_gradient(
    grad_NQD: Tensor, hidden_RD: Tensor, base_N: Tensor, norm_weight: Tensor, rstd_NQ: Tensor, offset: float
) -> Tensor:
    """Compute the gradient (R, D) of the hidden states, like the reference."""
    hidden = unit_stride_rows(hidden_RD)
    images, queries, dim = grad_NQD.shape
    grad_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    if images:
        scatter_rows[(images * queries,)](
            grad_hidden,
            grad_NQD.contiguous(),
            hidden,
            base_N.contiguous(),
            norm_weight.contiguous(),
            rstd_NQ,
            hidden.stride(0),
            images,
            queries,
            dim,
            OFFSET=offset,
            IMAGES=triton.next_power_of_2(images),
            **_row_options(dim),
        )
    return grad_hidden


def norm_weight_gradient(
    grad_NQD: Tensor, hidden_RD: Tensor, base_N: Tensor, norm_weight: Tensor, rstd_NQ: Tensor
) -> Tensor:
    """Compute the gradient (D,) of the norm's weight, like the reference."""
    hidden = unit_stride_rows(hidden_RD)
    images, queries, dim = grad_NQD.shape
    rows = images * queries
    splits = max(1, min(WEIGHT_SPLITS, triton.cdiv(rows, WEIGHT_ROWS)))
    parts = rstd_NQ.new_empty(splits, dim) if images else rstd_NQ.new_zeros(1, dim)
    if images:
        sum_norm_weight[(triton.cdiv(dim, WEIGHT_COLUMNS), splits)](
            parts,
            grad_NQD.contiguous(),
            hidden,
            base_N.contiguous(),
            rstd_NQ,
            hidden.stride(0),
            rows,
            queries,
            dim,
            SPLITS=splits,
            ROWS=WEIGHT_ROWS,
            COLUMNS=WEIGHT_COLUMNS,
        )
    return parts.sum(0).to(norm_weight.dtype)


def _row_options(dim: int) -> dict[str, int]:
    """Return the options of kernels that hold a whole row: 16 numbers a thread in a row of 4096 or more."""
    block = triton.next_power_of_2(dim)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}
