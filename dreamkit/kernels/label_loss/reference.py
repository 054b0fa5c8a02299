"""The computation of `label_loss` in plain PyTorch, with the logits of all rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from dreamkit.kernels.tensors import accumulation_dtype


def label_loss_reference(
    logits: Callable[[Tensor], Tensor], rows_LD: Tensor, ids_L: Tensor, weights_L: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum () of the cross entropies, and the cross entropies (L,), in float32 at least."""
    logits_LV = logits(rows_LD)
    losses_L = F.cross_entropy(logits_LV.to(accumulation_dtype(logits_LV.dtype)), ids_L, reduction="none")
    return (losses_L * weights_L).sum(), losses_L.detach()
