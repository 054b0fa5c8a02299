"""Dream states projected into a decoder's context: rows are gathered, normalized and projected.

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
    pooled: Layer | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the context (N, Q, C) of each image's dream states, and a pooled vector (N, P) of their mean.

    `hidden_RD`, (R, D) or (B, T, D), is before the final norm, x / rms(x) * (offset + `norm_weight`). Image n has
    `queries` rows, starting at `base_N[n]` (int64). The rows of two images are identical or disjoint. `layers` have
    GELU between them. `pooled` is one layer, or None for no pooled vector.

    The norm is computed in float32 at least, and rounded once, to the dtype of the first layer's weight or to
    autocast's. (The last bit can differ from a library that also rounds before the norm's weight, as transformers does
    for LLaMA in bfloat16.) Few rows without a pooled vector are gathered, normalized and projected in one launch, or in
    two if the sum over D is split. Otherwise the normalized rows are written once, for context and pooled vector. The
    host reads no value, and gradients are summed in a fixed order.
    """
    layers = [_cast(layer, hidden_RD) for layer in layers]
    (weight, bias), *rest = layers
    hidden_RD = hidden_RD.reshape(-1, hidden_RD.shape[-1])
    norm = (hidden_RD, base_N, queries, norm_weight, eps, offset)
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
    """Return the layer in autocast's dtype if autocast is on."""
    weight, bias = layer
    device_type = like.device.type
    if not torch.is_autocast_enabled(device_type):
        return layer
    dtype = torch.get_autocast_dtype(device_type)
    return weight.to(dtype), None if bias is None else bias.to(dtype)
