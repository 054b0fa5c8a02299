"""Input embeddings in plain PyTorch: words are looked up, then slots are filled.

B rows, T tokens of a row, R = B T rows laid end to end, N images to read, V vision tokens of an image, K blocks of Q
dream queries, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from dreamkit.kernels.tensors import wide


def look_up(
    ids: Tensor,
    weight: Tensor,
    added: Tensor | None = None,
    added_rows: Tensor | None = None,
    scale: Tensor | None = None,
    padding_id: int | None = None,
) -> Tensor:
    """Ids (...) -> input embeddings (..., D); the tables are those of `dreamkit.Embedding`."""
    if added is None or added_rows is None:
        return _scaled(F.embedding(ids, weight, padding_id), scale)
    row = added_rows[ids]
    known = F.embedding(ids.clamp(max=len(weight) - 1), weight, padding_id)
    new = F.embedding(row.clamp(min=0), added)
    return torch.where(row[..., None] < 0, _scaled(known, scale), _scaled(new, scale))


def _scaled(rows: Tensor, scale: Tensor | None) -> Tensor:
    return rows if scale is None else rows * scale.to(rows.dtype)


def fill_slots(
    embeds_BTD: Tensor, vision_rows_NV: Tensor, vision_NVD: Tensor, query_rows_KQ: Tensor, queries_QD: Tensor
) -> Tensor:
    """Embeddings (B, T, D) with vision tokens and dream queries in the rows that are theirs."""
    embeds = rearrange(embeds_BTD, "b t d -> (b t) d")
    queries = repeat(queries_QD, "q d -> (k q) d", k=query_rows_KQ.shape[0])
    embeds = embeds.index_copy(0, vision_rows_NV.flatten(), vision_NVD.flatten(0, 1).to(embeds.dtype))
    embeds = embeds.index_copy(0, query_rows_KQ.flatten(), queries.to(embeds.dtype))
    return embeds.view_as(embeds_BTD)


def sum_groups(rows_RD: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """The sums (G, D) of the rows of each group, in a fixed order and in float32 at least.

    Group g has the rows `order[starts[g] : starts[g + 1]]`; what lies behind the last start belongs to none.
    """
    group = torch.searchsorted(starts[1:], torch.arange(len(order), device=order.device), right=True)
    # torch's scatter that sorts and uses no atomics
    sums = torch.ops.aten.embedding_dense_backward(
        rows_RD[order].to(wide(rows_RD.dtype)), group, len(starts), -1, False
    )
    return sums[:-1]
