"""The operators with their gradients: Triton where it runs, the reference elsewhere.

R rows of hidden states, N images, Q dream queries, D language width, C context width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from dreamkit.kernels import on_its_device, usable
from dreamkit.kernels.query_projection import reference
from dreamkit.kernels.tensors import accumulation_dtype

_NORM = "Tensor hidden_RD, Tensor base_N, SymInt queries, Tensor norm_weight, float eps, float offset"


@custom_op(
    "dreamkit::query_states",
    mutates_args=(),
    schema=f"({_NORM}, ScalarType dtype) -> (Tensor, Tensor)",
)
@on_its_device
def query_states(
    hidden_RD: Tensor,
    base_N: Tensor,
    queries: int,
    norm_weight: Tensor,
    eps: float,
    offset: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Compute each image's normalized rows (N, Q, D) in `dtype`, and 1 / rms of each (N, Q), without a gradient."""
    if usable(hidden_RD):
        from dreamkit.kernels.query_projection import norm

        return norm.query_states(hidden_RD, base_N, queries, norm_weight, eps, offset, dtype)
    rows_NQ = reference.rows_of(base_N, queries)
    return reference.query_states(hidden_RD, rows_NQ, norm_weight, eps, offset, dtype)


@query_states.register_fake
def _(
    hidden_RD: Tensor,
    base_N: Tensor,
    queries: int,
    norm_weight: Tensor,
    eps: float,
    offset: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    images = base_N.shape[0]
    states = hidden_RD.new_empty(images, queries, hidden_RD.shape[1], dtype=dtype)
    return states, hidden_RD.new_empty(images, queries, dtype=accumulation_dtype(hidden_RD.dtype))


@custom_op(
    "dreamkit::query_states_backward",
    mutates_args=(),
    schema="(Tensor grad_NQD, Tensor hidden_RD, Tensor base_N, Tensor norm_weight, Tensor rstd_NQ, float offset, "
    "bool needs_hidden, bool needs_weight) -> (Tensor, Tensor)",
)
@on_its_device
def query_states_backward(
    grad_NQD: Tensor,
    hidden_RD: Tensor,
    base_N: Tensor,
    norm_weight: Tensor,
    rstd_NQ: Tensor,
    offset: float,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the hidden states (R, D) and of the norm's weight (D,); one not needed is empty."""
    hidden, weight = hidden_RD.new_empty(0), norm_weight.new_empty(0)
    if usable(hidden_RD):
        from dreamkit.kernels.query_projection import norm

        if needs_hidden:
            hidden = norm.hidden_gradient(grad_NQD, hidden_RD, base_N, norm_weight, rstd_NQ, offset)
        if needs_weight:
            weight = norm.norm_weight_gradient(grad_NQD, hidden_RD, base_N, norm_weight, rstd_NQ)
        return hidden, weight
    rows_NQ = reference.rows_of(base_N, grad_NQD.shape[1])
    if needs_hidden:
        hidden = reference.hidden_gradient(grad_NQD, hidden_RD, rows_NQ, norm_weight, rstd_NQ, offset)
    if needs_weight:
        weight = reference.norm_weight_gradient(grad_NQD, hidden_RD, rows_NQ, norm_weight, rstd_NQ)
    return hidden, weight


@query_states_backward.register_fake
def _(
    grad_NQD: Tensor,
    hidden_RD: Tensor,
    base_N: Tensor,
    norm_weight: Tensor,
    rstd_NQ: Tensor,
    offset: float,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    hidden = hidden_RD.new_empty(hidden_RD.shape if needs_hidden else 0)
    return hidden, norm_weight.new_empty(norm_weight.shape if needs_weight else 0)


@custom_op(
    "dreamkit::query_projection",
    mutates_args=(),
    schema=f"({_NORM}, Tensor weight, Tensor? bias) -> (Tensor, Tensor)",
)
@on_its_device
def query_projection(
    hidden_RD: Tensor,
    base_N: Tensor,
    queries: int,
    norm_weight: Tensor,
    eps: float,
    offset: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Project the normalized rows to (N, Q, C) in `weight`'s dtype; also return 1 / rms, like `query_states`."""
    if usable(hidden_RD):
        from dreamkit.kernels.query_projection import projection

        return projection.query_projection(hidden_RD, base_N, queries, norm_weight, eps, offset, weight, bias)
    rows_NQ = reference.rows_of(base_N, queries)
    states, rstd = reference.query_states(hidden_RD, rows_NQ, norm_weight, eps, offset, weight.dtype)
    return F.linear(states, weight, bias), rstd


@query_projection.register_fake
def _(
    hidden_RD: Tensor,
    base_N: Tensor,
    queries: int,
    norm_weight: Tensor,
    eps: float,
    offset: float,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    images = base_N.shape[0]
    context = weight.new_empty(images, queries, weight.shape[0])
    return context, hidden_RD.new_empty(images, queries, dtype=accumulation_dtype(hidden_RD.dtype))


def _save_states(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, base, _, norm_weight, _, ctx.offset, _ = inputs
    ctx.save_for_backward(hidden, base, norm_weight, output[1])
    ctx.set_materialize_grads(False)


def _states_gradients(ctx: Any, grad_NQD: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_NQD is None:
        return (None,) * 7
    hidden, norm = _norm_gradients(ctx, grad_NQD, *ctx.saved_tensors)
    return hidden, None, None, norm, None, None, None


def _norm_gradients(
    ctx: Any, grad_NQD: Tensor, hidden: Tensor, base: Tensor, norm_weight: Tensor, rstd: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    grad_hidden, grad_weight = query_states_backward(
        grad_NQD, hidden, base, norm_weight, rstd, ctx.offset, needs_hidden, needs_weight
    )
    return grad_hidden if needs_hidden else None, grad_weight if needs_weight else None


def _save_projection(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, base, ctx.queries, norm_weight, ctx.eps, ctx.offset, weight, _ = inputs
    ctx.save_for_backward(hidden, base, norm_weight, output[1], weight)
    ctx.set_materialize_grads(False)


def _projection_gradients(ctx: Any, grad_NQC: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Compute torch's products around the norm's gradients; a trained matrix needs the normalized rows again."""
    if grad_NQC is None:
        return (None,) * 8
    hidden, base, norm_weight, rstd, weight = ctx.saved_tensors
    grad_MC = grad_NQC.flatten(0, 1)
    grad_hidden = grad_norm = matrix = bias = None
    if ctx.needs_input_grad[6]:
        states, _ = query_states(hidden, base, ctx.queries, norm_weight, ctx.eps, ctx.offset, weight.dtype)
        matrix = grad_MC.t() @ states.flatten(0, 1)
    if ctx.needs_input_grad[7]:
        bias = grad_MC.sum(0)
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
        grad_hidden, grad_norm = _norm_gradients(ctx, grad_NQC @ weight, hidden, base, norm_weight, rstd)
    return grad_hidden, None, None, grad_norm, None, None, matrix, bias


query_states.register_autograd(_states_gradients, setup_context=_save_states)
query_projection.register_autograd(_projection_gradients, setup_context=_save_projection)
