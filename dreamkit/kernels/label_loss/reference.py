"""What `label_loss` computes, with the logits of all rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def label_loss_reference(
    logits: Callable[[Tensor], Tensor], rows_LD: Tensor, ids_L: Tensor, weights_L: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted sum () of the cross entropies, and these (L,), in float32 at least."""
    logits_LV = logits(rows_LD)
    wide = logits_LV if logits_LV.dtype.itemsize > 4 else logits_LV.float()
    losses_L = F.cross_entropy(wide, ids_L, reduction="none")
    return (losses_L * weights_L).sum(), losses_L.detach()
