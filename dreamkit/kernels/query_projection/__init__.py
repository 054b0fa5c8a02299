"""Dream states into a decoder's context: rows gathered, normed, dropped and projected.

R rows of hidden states, N images, Q dream queries, D language width, C context width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.kernels import usable
from dreamkit.kernels.query_projection import op
from dreamkit.kernels.query_projection.reference import rows_of
from dreamkit.kernels.query_projection.tiles import is_fused

__all__ = ["Layer", "query_projection", "rows_of"]

Layer = tuple[Tensor, Tensor | None]  # weight (out, in) and bias (out,)


def query_projection(
    hidden_RD: Tensor,
    base_N: Tensor,
    queries: int,
    *,
    norm_weight: Tensor,
    eps: float,
    offset: float,
    layers: Sequence[Layer],
    drop_N: Tensor | None = None,
    unconditional: Tensor | None = None,
    pooled: Layer | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The context (N, Q, C) of each image's dream states, and of their mean the pooled vector (N, P).

    `hidden_RD`, (R, D) or (B, T, D), is before the final norm, x / rms(x) * (offset + `norm_weight`). The rows of image
    n are the `queries` ones from `base_N[n]` on (int64), or from `unconditional` on (int64, no dimensions) where
    `drop_N` is true. Blocks of two images are the same one or have no row in common. `layers` have GELU between them.

    The norm is computed in float32 at least, and rounded once, to the dtype of the first layer: that of its weight, or
    autocast's. (Where a library rounds before the norm's weight too, as transformers does for LLaMA in bfloat16, the
    last bit can differ.) Few rows without a pooled vector are gathered, normed and projected in one launch, or two if
    the sum over D is split; otherwise the normed rows are written once, for context and pooled vector. Nothing is read
    back by the host, and gradients are summed in a fixed order.
    """
    layers = [_cast(layer, hidden_RD) for layer in layers]
    (weight, bias), *rest = layers
    hidden_RD = hidden_RD.reshape(-1, hidden_RD.shape[-1])
    norm = (hidden_RD, base_N, drop_N, unconditional, queries, norm_weight, eps, offset)
    vector = None
    is_small = is_fused(base_N.shape[0] * queries, hidden_RD.dtype, weight.dtype)
    if is_small and pooled is None and usable(hidden_RD):
        context, _ = op.query_projection(*norm, weight, bias)
    else:
        states_NQD, _ = op.query_states(*norm, weight.dtype)
        context = F.linear(states_NQD, weight, bias)
        if pooled is not None:
            vector = F.linear(states_NQD.mean(1), *_cast(pooled, hidden_RD))
    for weight, bias in rest:
        context = F.linear(F.gelu(context), weight, bias)
    return context, vector


def _cast(layer: Layer, like: Tensor) -> Layer:
    """The layer in autocast's dtype, where that is on."""
    weight, bias = layer
    kind = like.device.type
    if not torch.is_autocast_enabled(kind):
        return layer
    dtype = torch.get_autocast_dtype(kind)
    return weight.to(dtype), None if bias is None else bias.to(dtype)
