"""The language model's loss: time, and the memory of logits, against logits of all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.kernels.bench.figures import Work
from dreamkit.kernels.bench.gradients import EAGER, with_backward
from dreamkit.kernels.bench.harness import MEMORY, Bench, Case, measured
from dreamkit.kernels.bench.records import Record, Records, Verdict, at_most
from dreamkit.kernels.label_loss import label_loss
from dreamkit.kernels.label_loss.reference import label_loss_reference

LEARNED, FROZEN = "label loss, forward and backward", "label loss, forward, the head frozen"
DIM, VOCABULARY = 4096, 32000
FEW, MANY = 16_384, 148_000  # labelled rows; logits of the many take 19 GB in float32
MOST_GB = 0.5

Loss = Callable[..., tuple[Tensor, ...]]
LOSSES: dict[str, Loss] = {EAGER: label_loss_reference, "ours": label_loss}
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
    """Times where all logits fit beside their gradients; memory where nothing but logits is in the way."""
    dim, vocabulary = (16, 50) if bench.small else (DIM, VOCABULARY)
    for table, rows in ((LEARNED, FEW), (FROZEN, FEW), (FROZEN, MANY)):
        count = rows >> 10 if bench.small else rows
        totals = candidates()

        def inputs(count: int = count, learned: bool = table == LEARNED) -> tuple[Tensor, ...]:
            def made(*size: int) -> Tensor:
                return torch.randn(size, device=bench.device).to(torch.bfloat16).mul_(0.02)

            ids = torch.randint(vocabulary, (count,), device=bench.device)
            return made(count, dim).requires_grad_(), made(vocabulary, dim).requires_grad_(learned), ids

        yield from measured(
            bench,
            Case(
                table,
                f"{rows} rows",
                inputs,
                {name: with_backward(run, (0, 1)) for name, run in totals.items()}
                if table == LEARNED
                else totals,
                work=Work(0, 6 * count * vocabulary * dim) if table == LEARNED else None,
                memory=True,
                rotated=False,
            ),
        )


def targets(records: Records) -> Iterator[Verdict]:
    """The loss computes the rows' gradient in the forward pass, and this is no logit."""
    found = records.figure(FROZEN + MEMORY, f"{MANY} rows", "ours", "B")
    yield at_most(
        f"peak logits memory at {MANY} labelled rows at most {MOST_GB} GB",
        MOST_GB,
        [(None if found is None else (found.value - MANY * DIM * 2) / 1e9, f"{MANY} rows")],
        "GB besides the gradient of the rows",
    )
