"""A Triton kernel: input embeddings in one launch.

R rows of embeddings in sequence, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamkit.kernels.tensors import unit_stride_rows

COPY_BLOCK = 2048  # columns that one program copies


@triton.jit
def _copy(
    target: tl.tensor,
    table: tl.tensor,
    row: tl.tensor,
    stride: int,
    columns: tl.tensor,
    inside: tl.tensor,
    scale: tl.tensor | None,
) -> None:
    """Copy one row of a table, times the scale, if any, in the table's dtype."""
    values = tl.load(table + row * stride + columns, mask=inside)
    if scale is not None:
        factor = tl.load(scale).to(values.dtype)
        if values.dtype.primitive_bitwidth < 32:  # like PyTorch: in float32, rounded once
            values = (values.to(tl.float32) * factor.to(tl.float32)).to(values.dtype)
        else:
            values = values * factor
    tl.store(target, values.to(target.dtype.element_ty), mask=inside)


@triton.jit
def copy_rows(
    embeds: tl.tensor,
    ids: tl.tensor,
    slots: tl.tensor,
    vision: tl.tensor,
    queries: tl.tensor,
    weight: tl.tensor,
    added: tl.tensor | None,
    added_rows: tl.tensor | None,
    scale: tl.tensor | None,
    vision_count: int,
    dim: int,
    vision_stride: int,
    query_stride: int,
    weight_stride: int,
    added_stride: int,
    BLOCK: tl.constexpr,
) -> None:
    """Copy a block of columns of one row of embeddings, (R, D), from the table that its slot or its id selects."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < dim
    target = embeds + row * dim + columns
    slot = tl.load(slots + row)
    if slot >= vision_count:
        _copy(target, queries, slot - vision_count, query_stride, columns, inside, None)
    elif slot >= 0:
        _copy(target, vision, slot, vision_stride, columns, inside, None)
    else:
        token = tl.load(ids + row)
        if added is None:
            _copy(target, weight, token, weight_stride, columns, inside, scale)
        else:
            added_row = tl.load(added_rows + token)
            if added_row < 0:
                _copy(target, weight, token, weight_stride, columns, inside, scale)
            else:
                _copy(target, added, added_row, added_stride, columns, inside, scale)


def assemble(
    ids_BT: Tensor,
    slots_BT: Tensor,
    vision_NVD: Tensor,
    queries_QD: Tensor,
    weight: Tensor,
    added: Tensor | None,
    added_rows: Tensor | None,
    scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Compute embeddings (B, T, D) from the operator's arguments."""
    dim = weight.shape[1]
    embeds_BTD = torch.empty(*ids_BT.shape, dim, dtype=dtype, device=weight.device)
    vision, queries, weight = (
        unit_stride_rows(vision_NVD.reshape(-1, dim)),
        unit_stride_rows(queries_QD),
        unit_stride_rows(weight),
    )
    added = None if added is None else unit_stride_rows(added)
    block = min(triton.next_power_of_2(dim), COPY_BLOCK)
    if ids_BT.numel():
        copy_rows[(ids_BT.numel(), triton.cdiv(dim, block))](
            embeds_BTD,
            ids_BT.contiguous(),
            slots_BT.contiguous(),
            vision,
            queries,
            weight,
            added,
            None if added_rows is None else added_rows.contiguous(),
            scale,
            len(vision),
            dim,
            vision.stride(0),
            queries.stride(0),
            weight.stride(0),
            0 if added is None else added.stride(0),
            BLOCK=block,
        )
    return embeds_BTD
