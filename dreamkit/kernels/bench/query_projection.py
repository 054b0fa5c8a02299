"""Dream states into a decoder's context: eager, compiled and fused, at the sizes of real decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.kernels.bench.figures import Work, ratio
from dreamkit.kernels.bench.gradients import COMPILED, EAGER, directions
from dreamkit.kernels.bench.harness import GRAPHS, Bench, Case, measured
from dreamkit.kernels.bench.records import FLOOR, Record, Records, Verdict, at_least, at_most
from dreamkit.kernels.query_projection import op, query_projection

OURS = "ours"
TABLE = "query projection"
FORWARD, BOTH = f"{TABLE}, forward", f"{TABLE}, forward and backward"
DIM, QUERIES = 4096, 64
IMAGES = (1, 4, 16, 64, 256)
WIDTHS = (768, 1024, 2048)
EPS = 1e-6
ITEMSIZE = 2  # bfloat16

FEW, MANY = 4, 64  # images: up to, and from
FEW_SPEEDUP, MANY_SPEEDUP, MANY_SHARE = 3.0, 1.5, 0.65  # over eager, over eager, of the roofline
FEW_MICROSECONDS = 6.0


def work(images: int, width: int, is_backward: bool, *, dim: int = DIM, queries: int = QUERIES) -> Work:
    """Rows, the norm's weight and the matrix are read and the context is written, each once.

    Backward, context's gradient is read, rows and matrix are read again, and a gradient of each is written.
    """
    rows, matrix, context = images * queries * dim, width * dim, images * queries * width
    moved = rows + dim + matrix + context
    flops = 2.0 * images * queries * dim * width
    if is_backward:
        moved += context + 2 * (rows + dim + matrix)
        flops *= 3
    return Work(ITEMSIZE * moved, flops)


def inputs(
    images: int, width: int, device: torch.device, *, dim: int = DIM, queries: int = QUERIES
) -> tuple[Any, ...]:
    """Hidden states of which every other block is an image's, the first and all rows of these, as a batch has them,
    the norm's weight and the matrix."""
    hidden = torch.randn(2 * images * queries, dim, device=device).to(torch.bfloat16)
    base = 2 * queries * torch.arange(images, device=device)
    norm = (1 + 0.1 * torch.randn(dim, device=device)).to(torch.bfloat16)
    matrix = (dim**-0.5 * torch.randn(width, dim, device=device)).to(torch.bfloat16)
    rows = base[:, None] + torch.arange(queries, device=device)
    return hidden.requires_grad_(), base, rows, norm.requires_grad_(), matrix.requires_grad_()


LEARNED = (0, 3, 4)  # hidden states, the norm's weight and the matrix


def candidates(queries: int) -> dict[str, Callable[..., Tensor]]:
    """Ours chooses between its two paths by the size; they are also measured each by itself."""

    def eager(hidden: Tensor, base: Tensor, rows: Tensor, norm: Tensor, matrix: Tensor) -> Tensor:
        """As a language model of transformers and a linear projector compute it."""
        states = hidden[rows].float()
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + EPS)
        return F.linear(norm * states.to(hidden.dtype), matrix)

    def calls(hidden: Tensor, base: Tensor, rows: Tensor, norm: Tensor, matrix: Tensor) -> Tensor:
        return F.linear(F.rms_norm(hidden[rows], norm.shape, norm, EPS), matrix)

    def ours(hidden: Tensor, base: Tensor, rows: Tensor, norm: Tensor, matrix: Tensor) -> Tensor:
        layers = [(matrix, None)]
        return query_projection(hidden, base, queries, norm_weight=norm, eps=EPS, offset=0.0, layers=layers)[
            0
        ]

    def at_once(hidden: Tensor, base: Tensor, rows: Tensor, norm: Tensor, matrix: Tensor) -> Tensor:
        return op.query_projection(hidden, base, None, None, queries, norm, EPS, 0.0, matrix, None)[0]

    def rows_first(hidden: Tensor, base: Tensor, rows: Tensor, norm: Tensor, matrix: Tensor) -> Tensor:
        states = op.query_states(hidden, base, None, None, queries, norm, EPS, 0.0, matrix.dtype)[0]
        return F.linear(states, matrix)

    return {EAGER: eager, "F.rms_norm": calls, OURS: ours, "one launch": at_once, "rows first": rows_first}


def section(bench: Bench) -> Iterator[Record]:
    """Forward at every size, then forward and backward."""
    small = {"dim": 32, "queries": 4}
    sizes = small if bench.small else {"dim": DIM, "queries": QUERIES}
    for table in (FORWARD, BOTH):
        is_backward = table == BOTH
        for images in IMAGES[:2] if bench.small else IMAGES:
            for width in WIDTHS[:1] if bench.small else WIDTHS:
                wide = width // 48 if bench.small else width
                yield from measured(
                    bench,
                    Case(
                        table,
                        _case(images, width),
                        partial(inputs, images, wide, bench.device, **sizes),
                        directions(candidates(sizes["queries"]), LEARNED, is_backward, bench.small),
                        work=work(images, wide, is_backward, **sizes),
                        graphs=True,
                    ),
                )


def targets(records: Records) -> Iterator[Verdict]:
    """Each of all the sizes it is for, told by the worst of them."""
    few, many = [n for n in IMAGES if n <= FEW], [n for n in IMAGES if n >= MANY]
    graphs = FORWARD + GRAPHS
    for table in (FORWARD, graphs):
        how = table.removeprefix(FORWARD)
        yield _over(records, f"N <= {FEW}{how}", table, few, EAGER, FEW_SPEEDUP)
        yield _over(records, f"N >= {MANY}{how}", table, many, EAGER, MANY_SPEEDUP)
    yield _over(records, f"N <= {FEW}{GRAPHS}", graphs, few, COMPILED, 1.0)
    times = [(records.figure(graphs, name, OURS), name) for name in _cases(few)]
    yield at_most(
        f"query projection, N <= {FEW}{GRAPHS}: at most {FEW_MICROSECONDS:g} microseconds",
        FEW_MICROSECONDS,
        [(None if found is None else 1e6 * found.value, name) for found, name in times],
        "microseconds",
    )
    shares = []
    for name in _cases(many):
        floor, found = records.figure(graphs, name, FLOOR), records.figure(graphs, name, OURS)
        shares.append((None if floor is None or found is None else 100 * floor.value / found.value, name))
    target = f"query projection, N >= {MANY}{GRAPHS}: {MANY_SHARE:.0%} of the roofline"
    yield at_least(target, 100 * MANY_SHARE, shares, "%")


def _over(
    records: Records, what: str, table: str, images: Sequence[int], other: str, wanted: float
) -> Verdict:
    found: list[tuple[float | None, str]] = []
    for name in _cases(images):
        base, own = records.figure(table, name, other), records.figure(table, name, OURS)
        found.append((None if base is None or own is None else ratio(base, own), name))
    return at_least(f"query projection, {what}: {wanted:g} x {other}", wanted, found, f"x {other}")


def _cases(images: Sequence[int]) -> list[str]:
    return [_case(count, width) for count in images for width in WIDTHS]


def _case(images: int, width: int) -> str:
    return f"N {images}, C {width}"
