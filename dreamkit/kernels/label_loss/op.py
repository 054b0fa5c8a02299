"""The loss and its gradients, computed chunk by chunk, all in the forward pass.

The logits of a chunk live until its gradients are known, and the backward pass computes nothing again. `logits` is any
function: soft caps, scales, added tokens in a matrix of their own, adapters. So the loss is always that of the model's
own head, and a frozen matrix costs no gradient.

Alternatives, and why they are not used:

- `F.linear_cross_entropy` with `LinearCrossEntropyOptions` (torch 2.14, not in 2.11) takes one matrix, without a soft
  cap, and ignores autocast. Its sum has weights of classes, not of rows. Losses of each row (`reduction="none"`) cost a
  second computation of the logits in the backward pass. It rounds losses and the matrix's gradient to the rows' dtype,
  the gradient after each chunk on a GPU. As one opaque operator, it hides its memory and its floating-point operations
  from counters (`dreamkit plan`). The benchmark measures it, with equal weights of rows.
- Liger's fused loss and cut-cross-entropy are Triton kernels for one matrix, and run on no CPU. The latter computes the
  logits twice. torchtune's `LinearCrossEntropyLoss` stores the logits of every chunk for the backward pass.

L labelled rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.tensors import accumulation_dtype

BUDGET: Final = 192 * 2**20  # bytes of one chunk's logits and their derivatives
TILE: Final = 128  # rows that a GPU computes together in a matrix product

Logits = Callable[[Tensor], Tensor]


class LabelLoss(NamedTuple):
    """Loss `total` (), the weighted sum of `by_row` (L,), which are unweighted and detached."""

    total: Tensor
    by_row: Tensor


def label_loss(
    logits: Logits, rows_LD: Tensor, ids_L: Tensor, weights_L: Tensor, *, budget: int = BUDGET
) -> LabelLoss:
    """Compute the cross entropy of `logits(rows)`, (L, V), and the labels `ids_L`, in float32 at least.

    `logits` is called with chunks of rows, so large that their logits and derivatives take about `budget` bytes. The
    gradient reaches the rows and every leaf that `logits` uses. If `logits` uses a tensor computed from a leaf before,
    each chunk's gradient passes through that computation again. Gradients are summed in float32 at least. Every
    backward pass may use them, but they cannot be differentiated.
    """
    first_row = logits(rows_LD[:1].detach())
    size = _rows_per_chunk(first_row, budget)
    leaves = _leaves(first_row)
    del first_row
    rows_LD = rows_LD if torch.is_grad_enabled() else rows_LD.detach()
    return LabelLoss(*_LabelLoss.apply(logits, size, rows_LD, ids_L, weights_L, *leaves))


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Logits,
        size: int,
        rows_LD: Tensor,
        ids_L: Tensor,
        weights_L: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, Tensor]:
        needs_rows = ctx.needs_input_grad[2]
        grad_LD = torch.empty_like(rows_LD) if needs_rows else None
        new = torch.empty_like if len(rows_LD) else torch.zeros_like
        grads = [new(leaf, dtype=accumulation_dtype(leaf.dtype)) for leaf in leaves]
        losses = []
        for start in range(0, len(rows_LD), size):
            chunk = slice(start, start + size)
            rows = rows_LD[chunk].detach().requires_grad_(needs_rows)
            with torch.enable_grad():
                # a view: autocast would keep its copy of a leaf until it ends
                chunk_logits = logits(rows.view_as(rows))
            loss, error = _loss_and_error(chunk_logits.detach(), ids_L[chunk], weights_L[chunk])
            losses.append(loss)
            inputs = [rows, *leaves] if needs_rows else [*leaves]
            if inputs:
                # retained: `logits` may use a tensor computed from a leaf before, whose graph the next chunk needs too
                with _no_autocast(rows.device.type):  # as in any backward pass
                    chunk_grads = [*torch.autograd.grad(chunk_logits, inputs, error, retain_graph=True)]
                if grad_LD is not None:
                    grad_LD[chunk] = chunk_grads.pop(0)
                for grad in grads:
                    if start == 0:  # copied: gradients of two leaves may be one tensor
                        grad.copy_(chunk_grads.pop(0))
                    else:
                        grad += chunk_grads.pop(0)
            del chunk_logits, error
        by_row = (
            torch.cat(losses) if losses else rows_LD.new_zeros(0, dtype=accumulation_dtype(rows_LD.dtype))
        )
        ctx.needs_rows = needs_rows
        ctx.save_for_backward(
            *([] if grad_LD is None else [grad_LD]),
            *(grad.to(leaf.dtype) for grad, leaf in zip(grads, leaves, strict=True)),
        )
        ctx.mark_non_differentiable(by_row)
        return (by_row * weights_L).sum(), by_row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # not in place: another backward pass through the same graph uses them again
        grads = [(grad * grad_total).to(grad.dtype) for grad in ctx.saved_tensors]
        grad_LD = grads.pop(0) if ctx.needs_rows else None
        return None, None, grad_LD, None, None, *grads


def _loss_and_error(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's cross entropy, and the gradient of the weighted sum with respect to the logits."""
    label = ids[:, None]
    values = torch.log_softmax(logits, dim=-1, dtype=accumulation_dtype(logits.dtype))
    loss = -values.gather(1, label).squeeze(1)
    values.exp_()
    values.scatter_(1, label, values.gather(1, label) - 1)
    values *= weights[:, None]
    return loss, values.to(logits.dtype)


def _rows_per_chunk(logits: Tensor, budget: int) -> int:
    """Return the rows that fit into `budget`: two copies of their logits, and two in the dtype of the loss."""
    loss_itemsize = accumulation_dtype(logits.dtype).itemsize
    rows = max(1, budget // (2 * logits.shape[-1] * (logits.element_size() + loss_itemsize)))
    return rows if rows < TILE else rows - rows % TILE


def _no_autocast(kind: str) -> AbstractContextManager[Any]:
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _leaves(output: Tensor) -> list[Tensor]:
    """Return the leaves of the graph of `output` that need a gradient, in the order of the search."""
    return [node.variable for node in _nodes(output.grad_fn) if hasattr(node, "variable")]


def _nodes(node: Any) -> Iterator[Any]:
    """Yield each node of an autograd graph once."""
    stack, seen = [node] if node is not None else [], {node}
    while stack:
        node = stack.pop()
        yield node
        unseen = [each for each, _ in node.next_functions if each is not None and each not in seen]
        stack += dict.fromkeys(unseen)
        seen |= {*unseen}
