"""The condition of images from the language model's hidden states, by one fused operator.

R rows of hidden states, N images, Q dream queries; other shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dreamkit.kernels.query_projection import Layer, query_projection
from dreamkit.parts.projector import Projector
from dreamkit.parts.specs import Condition

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel


def fused_condition(model: DreamModel, hidden_RD: Tensor, base_N: Tensor) -> Condition | None:
    """Compute the condition of N images from hidden states (R, D) before the final norm; None if unsupported.

    The operator supports an RMS norm, a condition projector of linear layers with GELU between them, and a pooled
    projector of one linear layer. Each image has Q rows of `hidden_RD`, which start at its row of `base_N` (N,).
    """
    norm, layers = model.language_model.norm_weights, _layers(model.condition_projector)
    pooled = None if model.pooled_projector is None else _layers(model.pooled_projector)
    if norm is None or not layers or (model.pooled_projector is not None and (not pooled or len(pooled) > 1)):
        return None
    context, vector = query_projection(
        hidden_RD,
        base_N,
        len(model.dream_queries),
        norm_weight=norm.weight,
        eps=norm.eps,
        offset=norm.offset,
        layers=layers,
        pooled=pooled[0] if pooled else None,
    )
    return Condition(context, pooled=vector)


def _layers(projector: Projector) -> list[Layer] | None:
    dense = projector.dense_layers()
    return None if dense is None else [(layer.weight, layer.bias) for layer in dense]
