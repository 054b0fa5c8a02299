"""The language model's loss: time, and the memory of logits, against logits of all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.kernels.bench.figures import Work
from dreamkit.kernels.bench.gradients import EAGER, with_backward
from dreamkit.kernels.bench.harness import MEMORY, Bench, Case, measured
from dreamkit.kernels.bench.measurements import Record, Records, Verdict, at_most
from dreamkit.kernels.label_loss import label_loss
from dreamkit.kernels.label_loss.reference import label_loss_reference

LEARNED, FROZEN = "label loss, the head trained", "label loss, the head frozen"
ALONE = ", forward pass alone"
OURS = "ours"
DIM, VOCABULARY = 4096, 32000
FEW, MANY = 16_384, 148_000  # labelled rows; logits of the many take 19 GB in float32
MOST_GB = 0.5

Loss = Callable[..., tuple[Tensor, ...]]
LOSSES: dict[str, Loss] = {EAGER: label_loss_reference, OURS: label_loss}
TORCH = "F.linear_cross_entropy"  # of torch 2.14

Total = Callable[[Tensor, Tensor, Tensor], Tensor]


def candidates() -> dict[str, Total]:
    """The mean loss of rows, of a matrix and of ids: what all can give, as torch's own knows no weights of rows."""
    totals = {name: _total(loss) for name, loss in LOSSES.items()}
    return totals | ({TORCH: _of_torch} if hasattr(torch.nn, "LinearCrossEntropyOptions") else {})


def _total(loss: Loss) -> Total:
    def total(rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        weights = torch.full((len(rows),), 1 / len(rows), device=rows.device)
        return loss(lambda some: F.linear(some, weight), rows, ids, weights)[0]

    return total


def _of_torch(rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return F.linear_cross_entropy(rows, weight, ids, options=torch.nn.LinearCrossEntropyOptions())


def section(bench: Bench) -> Iterator[Record]:
    """Forward and backward, for ours computes its gradients in the forward pass; and the memory of that alone."""
    dim, vocabulary = (16, 50) if bench.small else (DIM, VOCABULARY)
    for rows in (FEW, MANY):
        count = rows >> 10 if bench.small else rows
        for table, learned in ((FROZEN, (0,)), (LEARNED, (0, 1))):
            both = Case(
                table,
                _case(rows),
                partial(_inputs, count, dim, vocabulary, table == LEARNED, bench.device),
                {name: with_backward(run, learned) for name, run in candidates().items()},
                work=Work(0, 2.0 * (1 + len(learned)) * count * vocabulary * dim),
                memory=True,
            )
            yield from measured(bench, both)
            if rows == MANY:
                alone = {OURS: candidates()[OURS]}
                yield from measured(bench, replace(both, table=table + ALONE, candidates=alone, work=None))


def _inputs(
    count: int, dim: int, vocabulary: int, is_learned: bool, device: torch.device
) -> tuple[Tensor, ...]:
    def made(*size: int) -> Tensor:
        return torch.randn(size, device=device).to(torch.bfloat16).mul_(0.02)

    ids = torch.randint(vocabulary, (count,), device=device)
    return made(count, dim).requires_grad_(), made(vocabulary, dim).requires_grad_(is_learned), ids


def targets(records: Records) -> Iterator[Verdict]:
    """All of its logits live in the forward pass, beside gradients that would be there without any.

    These are the rows' in bfloat16, and the matrix's as it is added up, in float32, with a chunk's in bfloat16.
    """
    to_rows, to_matrix = 2 * MANY * DIM, (4 + 2) * VOCABULARY * DIM
    for table, besides, named in (
        (FROZEN, to_rows, "the gradient of the rows"),
        (LEARNED, to_rows + to_matrix, "the gradients of rows and matrix"),
    ):
        found = records.value(table + ALONE + MEMORY, _case(MANY), OURS, "B")
        yield at_most(
            f"{table}: peak logits memory at {MANY} labelled rows at most {MOST_GB} GB",
            MOST_GB,
            [(None if found is None else (found - besides) / 1e9, _case(MANY))],
            f"GB besides {besides / 1e9:.2f} GB of {named}",
        )


def _case(rows: int) -> str:
    return f"{rows} rows"
