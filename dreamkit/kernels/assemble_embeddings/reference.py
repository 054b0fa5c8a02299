"""Input embeddings in plain PyTorch: words are looked up, then slots are filled.

B rows, T tokens of a row, R = B T rows in sequence, N images to read, V vision tokens of an image, K blocks of Q
dream queries, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor


def look_up(
    ids: Tensor,
    weight: Tensor,
    added: Tensor | None = None,
    added_rows: Tensor | None = None,
    scale: Tensor | None = None,
    padding_id: int | None = None,
) -> Tensor:
    """Look up the input embeddings (..., D) of ids (...) in the tables of `dreamkit.Embedding`."""
    if added is None or added_rows is None:
        return _scale(F.embedding(ids, weight, padding_id), scale)
    added_row = added_rows[ids]
    original = F.embedding(ids.clamp(max=len(weight) - 1), weight, padding_id)
    extra = F.embedding(added_row.clamp(min=0), added)
    return torch.where(added_row[..., None] < 0, _scale(original, scale), _scale(extra, scale))


def _scale(rows: Tensor, scale: Tensor | None) -> Tensor:
    return rows if scale is None else rows * scale.to(rows.dtype)


def fill_slots(
    embeds_BTD: Tensor, vision_rows_NV: Tensor, vision_NVD: Tensor, query_rows_KQ: Tensor, queries_QD: Tensor
) -> Tensor:
    """Return embeddings (B, T, D) with vision tokens and dream queries written to their rows."""
    embeds = rearrange(embeds_BTD, "b t d -> (b t) d")
    queries = repeat(queries_QD, "q d -> (k q) d", k=query_rows_KQ.shape[0])
    embeds = embeds.index_copy(0, vision_rows_NV.flatten(), vision_NVD.flatten(0, 1).to(embeds.dtype))
    embeds = embeds.index_copy(0, query_rows_KQ.flatten(), queries.to(embeds.dtype))
    return embeds.view_as(embeds_BTD)
