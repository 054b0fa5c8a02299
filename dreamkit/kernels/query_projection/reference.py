"""The computation of the kernels in plain PyTorch.

R rows of hidden states, N images, Q dream queries, D language width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamkit.kernels.tensors import accumulation_dtype


def rows_of(base_N: Tensor, queries: int) -> Tensor:
    """Return the rows (N, Q) of each image's queries, starting at its base."""
    return base_N[:, None] + torch.arange(queries, device=base_N.device)


def query_states(
    hidden_RD: Tensor, rows_NQ: Tensor, norm_weight: Tensor, eps: float, offset: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the normalized rows (N, Q, D), rounded once, to `dtype`, and 1 / rms (N, Q), in float32 at least."""
    x = hidden_RD[rows_NQ].to(accumulation_dtype(hidden_RD.dtype))
    rstd = torch.rsqrt(x.square().mean(-1) + eps)
    return (x * rstd[..., None] * (offset + norm_weight.to(x.dtype))).to(dtype), rstd


def hidden_gradient(
    grad_NQD: Tensor, hidden_RD: Tensor, rows_NQ: Tensor, norm_weight: Tensor, rstd_NQ: Tensor, offset: float
) -> Tensor:
    """Compute the gradient (R, D) of the hidden states; rows shared by images are summed in a fixed order."""
    states = hidden_RD[rows_NQ].to(accumulation_dtype(hidden_RD.dtype)) * rstd_NQ[..., None]
    grad = grad_NQD.to(states.dtype) * (offset + norm_weight.to(states.dtype))
    grad = rstd_NQ[..., None] * (grad - states * (grad * states).mean(-1, keepdim=True))
    # torch's scatter that sorts, so that it needs no atomics
    count = hidden_RD.shape[0]
    sums = torch.ops.aten.embedding_dense_backward(grad.flatten(0, 1), rows_NQ.flatten(), count, -1, False)
    return sums.to(hidden_RD.dtype)


def norm_weight_gradient(
    grad_NQD: Tensor, hidden_RD: Tensor, rows_NQ: Tensor, norm_weight: Tensor, rstd_NQ: Tensor
) -> Tensor:
    """Compute the gradient (D,) of the norm's weight."""
    states = hidden_RD[rows_NQ].to(accumulation_dtype(hidden_RD.dtype)) * rstd_NQ[..., None]
    return (grad_NQD.to(states.dtype) * states).sum((0, 1)).to(norm_weight.dtype)
