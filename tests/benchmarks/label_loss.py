"""The language model's loss, forward and backward, against the loss of all logits at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Case, compile_options, with_gradients
from dreamkit.kernels.label_loss import label_loss
from dreamkit.kernels.label_loss.reference import label_loss_reference

DIM, VOCABULARY = 4096, 32000  # LLaMA-7B's
ROWS = (16_384, 148_000)  # labelled rows; the logits of the latter take 19 GB in float32


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """The head frozen, then trained as in stage II."""
    eager = partial(mean_loss, label_loss_reference)
    calls = {
        "eager": eager,
        "torch.compile": torch.compile(eager, **compile_options(small)),
        "ours": partial(mean_loss, label_loss),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch 2.14
        calls["F.linear_cross_entropy"] = chunked_by_torch
    for rows in (16, 144) if small else ROWS:
        for head, trained in (("frozen", (0,)), ("trained", (0, 1))):
            sizes = (rows, 16, 50) if small else (rows, DIM, VOCABULARY)
            make_inputs = partial(inputs, *sizes, head == "trained", device)
            candidates = {name: with_gradients(call, trained) for name, call in calls.items()}
            yield Case(f"label loss, {rows} rows, head {head}", make_inputs, candidates)


def mean_loss(loss: Callable[..., tuple[Tensor, ...]], rows: Tensor, matrix: Tensor, ids: Tensor) -> Tensor:
    """Weight each row equally, as torch's own function takes no weights of rows."""
    weights = torch.full((len(rows),), 1 / len(rows), device=rows.device)
    return loss(lambda chunk: F.linear(chunk, matrix), rows, ids, weights)[0]


def chunked_by_torch(rows: Tensor, matrix: Tensor, ids: Tensor) -> Tensor:
    """Compute the loss in chunks with torch's own function."""
    return F.linear_cross_entropy(rows, matrix, ids, options=torch.nn.LinearCrossEntropyOptions())


def inputs(
    rows: int, dim: int, vocabulary: int, is_trained: bool, device: torch.device
) -> tuple[Tensor, ...]:
    """Return rows (L, D), the head's matrix (V, D) and labels (L,)."""
    states, matrix = (0.02 * torch.randn(size, dim, device=device).bfloat16() for size in (rows, vocabulary))
    ids = torch.randint(vocabulary, (rows,), device=device)
    return states.requires_grad_(), matrix.requires_grad_(is_trained), ids
