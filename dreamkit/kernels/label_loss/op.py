"""The loss and its gradients, a chunk of rows after the other, all in the forward pass.

Each chunk's logits live until their gradients are known, and nothing is computed again in the backward pass. The head
is whatever `logits` does: soft caps, scales, rows of added tokens in a matrix of their own, adapters. So the loss is
always that of `logits`, and a matrix that is frozen costs no gradient.

What else there is, and why it is not used:

- `F.linear_cross_entropy` with `LinearCrossEntropyOptions` (torch 2.14, not in 2.11) takes one matrix, without soft
  cap, and is no part of autocast. Its sum knows weights of classes, not of rows, and gives no losses by row; where it
  gives them (`reduction="none"`) it computes the logits a second time in the backward pass. Losses and the gradient of
  the matrix are rounded to the rows' dtype, the latter after each chunk on a GPU. As one opaque operator it shows
  counters (`dreamkit plan`) neither its memory nor its floating-point operations. The benchmark measures it, with the
  same weight for each row.
- Liger's fused loss and cut-cross-entropy are Triton kernels of one matrix, and run on no CPU; the second computes the
  logits again. torchtune's `LinearCrossEntropyLoss` keeps the logits of every chunk for the backward pass.

L labelled rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.tensors import wide

BUDGET: Final = 192 * 2**20  # bytes of one chunk's logits and what is made of them
TILE: Final = 128  # rows of a matrix product that GPUs compute together

Logits = Callable[[Tensor], Tensor]


class LabelLoss(NamedTuple):
    """`total` () is the weighted sum of `by_row` (L,), which are detached and without their weights."""

    total: Tensor
    by_row: Tensor


def label_loss(
    logits: Logits, rows_LD: Tensor, ids_L: Tensor, weights_L: Tensor, *, budget: int = BUDGET
) -> LabelLoss:
    """Cross entropy of `logits(rows)`, (L, V), and the labels `ids_L`, in float32 at least.

    `logits` is asked for some rows at a time, so many that what is made of their logits takes about `budget` bytes. The
    gradient reaches the rows and every leaf that `logits` computes with, also through what was computed of it before,
    which each chunk goes through again; it is added up in float32 at least, and can be taken once by each backward
    pass, but not differentiated.
    """
    one = logits(rows_LD[:1].detach())
    size = _rows_at_once(one, budget)
    learned = _leaves(one)
    del one
    rows_LD = rows_LD if torch.is_grad_enabled() else rows_LD.detach()
    return LabelLoss(*_LabelLoss.apply(logits, size, rows_LD, ids_L, weights_L, *learned))


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Logits,
        size: int,
        rows_LD: Tensor,
        ids_L: Tensor,
        weights_L: Tensor,
        *learned: Tensor,
    ) -> tuple[Tensor, Tensor]:
        to_rows = ctx.needs_input_grad[2]
        grad_LD = torch.empty_like(rows_LD) if to_rows else None
        grads = [torch.zeros_like(leaf, dtype=wide(leaf.dtype)) for leaf in learned]
        losses = []
        for at in range(0, len(rows_LD), size):
            chunk = slice(at, at + size)
            rows = rows_LD[chunk].detach().requires_grad_(to_rows)
            with torch.enable_grad():
                found = logits(rows.view_as(rows))  # autocast would keep its copy of a leaf until it ends
            loss, error = _loss_and_error(found.detach(), ids_L[chunk], weights_L[chunk])
            losses.append(loss)
            wanted = [rows, *learned] if to_rows else [*learned]
            if wanted:
                # what `logits` computes with may have been computed before: the next chunk's gradients take that way
                # too. The chunk's own graph ends with it.
                with _no_autocast(rows.device.type):  # as in any backward pass
                    given = [*torch.autograd.grad(found, wanted, error, retain_graph=True)]
                if grad_LD is not None:
                    grad_LD[chunk] = given.pop(0)
                for grad in grads:
                    grad += given.pop(0)
            del found, error
        by_row = torch.cat(losses) if losses else rows_LD.new_zeros(0, dtype=wide(rows_LD.dtype))
        ctx.to_rows = to_rows
        ctx.save_for_backward(
            *([] if grad_LD is None else [grad_LD]),
            *(grad.to(leaf.dtype) for grad, leaf in zip(grads, learned, strict=True)),
        )
        ctx.mark_non_differentiable(by_row)
        return (by_row * weights_L).sum(), by_row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # not in place: another backward pass through the same graph takes them again
        grads = [(grad * grad_total).to(grad.dtype) for grad in ctx.saved_tensors]
        to_rows = grads.pop(0) if ctx.to_rows else None
        return None, None, to_rows, None, None, *grads


def _loss_and_error(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy of each row, and the gradient of their weighted sum with respect to the logits."""
    label = ids[:, None]
    values = torch.log_softmax(logits, dim=-1, dtype=wide(logits.dtype))
    loss = -values.gather(1, label).squeeze(1)
    values.exp_()
    values.scatter_(1, label, values.gather(1, label) - 1)
    values *= weights[:, None]
    return loss, values.to(logits.dtype)


def _rows_at_once(logits: Tensor, budget: int) -> int:
    """How many rows fit: two copies of their logits as they are, and two in the dtype of the loss."""
    of_loss = torch.empty(0, dtype=wide(logits.dtype), device="meta")
    bytes_of_row = 2 * logits.shape[-1] * (logits.element_size() + of_loss.element_size())
    rows = max(1, budget // bytes_of_row)
    return rows if rows < TILE else rows - rows % TILE


def _no_autocast(kind: str) -> AbstractContextManager[Any]:
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _leaves(output: Tensor) -> list[Tensor]:
    """The tensors that a gradient would be added up in, in the order they are met from `output`."""
    return [node.variable for node in _nodes(output.grad_fn) if hasattr(node, "variable")]


def _nodes(node: Any) -> Iterator[Any]:
    """Each node of an autograd graph once."""
    waiting, seen = [node] if node is not None else [], {node}
    while waiting:
        node = waiting.pop()
        yield node
        new = [each for each, _ in node.next_functions if each is not None and each not in seen]
        waiting += dict.fromkeys(new)
        seen |= {*new}
