"""The operator with its gradients: Triton where it runs, the reference elsewhere.

B rows, T tokens of a row, R = B T rows in sequence, N images to read, V vision tokens of an image, K blocks of Q
dream queries, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from dreamkit.kernels import on_its_device, usable
from dreamkit.kernels.assemble_embeddings import reference
from dreamkit.kernels.tensors import accumulation_dtype

_SCHEMA = (
    "(Tensor ids_BT, Tensor slots_BT, Tensor vision_rows_NV, Tensor vision_NVD, Tensor query_rows_KQ, "
    "Tensor queries_QD, Tensor weight, Tensor? added, Tensor? added_rows, Tensor? scale, int? padding_id) -> Tensor"
)


@custom_op("dreamkit::assemble_embeddings", mutates_args=(), schema=_SCHEMA)
@on_its_device
def assemble_embeddings(
    ids_BT: Tensor,
    slots_BT: Tensor,
    vision_rows_NV: Tensor,
    vision_NVD: Tensor,
    query_rows_KQ: Tensor,
    queries_QD: Tensor,
    weight: Tensor,
    added: Tensor | None,
    added_rows: Tensor | None,
    scale: Tensor | None,
    padding_id: int | None,
) -> Tensor:
    """Assemble input embeddings (B, T, D) in one pass; each row is a copy of one row of a table.

    `slots_BT` selects the table: -1 means the tables of words, which are those of `dreamkit.Embedding`;
    0 <= slot < N V a row of the vision tokens in sequence; N V + q dream query q. `vision_rows_NV` and `query_rows_KQ`
    are the inverse: the embedding row of each vision token and of each query. The gradients use them.
    """
    if usable(ids_BT):
        from dreamkit.kernels.assemble_embeddings.kernels import assemble

        dtype = _dtype(weight, added)
        return assemble(ids_BT, slots_BT, vision_NVD, queries_QD, weight, added, added_rows, scale, dtype)
    words_BTD = reference.look_up(ids_BT, weight, added, added_rows, scale, padding_id)
    return reference.fill_slots(words_BTD, vision_rows_NV, vision_NVD, query_rows_KQ, queries_QD)


def _dtype(weight: Tensor, added: Tensor | None) -> torch.dtype:
    return weight.dtype if added is None else torch.promote_types(weight.dtype, added.dtype)


@assemble_embeddings.register_fake
def _(
    ids_BT: Tensor,
    slots_BT: Tensor,
    vision_rows_NV: Tensor,
    vision_NVD: Tensor,
    query_rows_KQ: Tensor,
    queries_QD: Tensor,
    weight: Tensor,
    added: Tensor | None,
    added_rows: Tensor | None,
    scale: Tensor | None,
    padding_id: int | None,
) -> Tensor:
    return weight.new_empty(*ids_BT.shape, weight.shape[1], dtype=_dtype(weight, added))


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, slots, vision_rows, vision, query_rows, queries, weight, added, added_rows, scale, ctx.padding_id = (
        inputs
    )
    ctx.save_for_backward(ids, slots, vision_rows, query_rows, added_rows, scale)
    ctx.vision_shape, ctx.vision_dtype, ctx.queries_dtype = vision.shape, vision.dtype, queries.dtype
    ctx.words, ctx.weight_dtype = weight.shape[0], weight.dtype
    ctx.added, ctx.added_dtype = (0, None) if added is None else (added.shape[0], added.dtype)


def _gradients(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
    """Compute gradients of the trained tables only, in a fixed order; the host reads no value."""
    ids, slots, vision_rows, query_rows, added_rows, scale = ctx.saved_tensors
    _, _, _, needs_vision, _, needs_queries, needs_weight, needs_added, *_ = ctx.needs_input_grad
    grad_RD = grad_BTD.flatten(0, 1)
    vision = queries = weight = added = None
    if needs_vision:  # each vision token has exactly one row
        vision = grad_RD[vision_rows.flatten()].view(ctx.vision_shape).to(ctx.vision_dtype)
    if needs_queries:
        sums = grad_RD[query_rows].sum(0, dtype=accumulation_dtype(grad_RD.dtype))
        queries = sums.to(ctx.queries_dtype)
    if needs_weight or needs_added:
        is_word = (slots < 0).flatten()
        added_row = torch.full_like(ids, -1).flatten() if added_rows is None else added_rows[ids].flatten()
        # rows of the words' table, then those of added tokens; the key after them collects everything else
        words = ctx.words if needs_weight else 0
        count = words + (ctx.added if needs_added else 0)
        keys = torch.full_like(added_row, count)
        if needs_weight:
            is_original = is_word & (added_row < 0)
            if ctx.padding_id is not None:
                is_original &= ids.flatten() != ctx.padding_id
            keys = torch.where(is_original, ids.flatten(), keys)
        if needs_added:
            keys = torch.where(is_word & (added_row >= 0), words + added_row, keys)
        # torch's own sum, which sorts and uses no atomics
        sums = torch.ops.aten.embedding_dense_backward(grad_RD, keys, count + 1, count, False)
        weight = _scale(sums[:words], scale, ctx.weight_dtype) if needs_weight else None
        added = _scale(sums[words:count], scale, ctx.added_dtype) if needs_added else None
    return None, None, None, vision, None, queries, weight, added, None, None, None


def _scale(sums: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (sums if scale is None else sums * scale.to(dtype)).to(dtype)


assemble_embeddings.register_autograd(_gradients, setup_context=_save_inputs)
