"""Dream states into a decoder's context: eager, compiled and fused, at the sizes of real decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.kernels.bench.figures import Work
from dreamkit.kernels.bench.gradients import COMPILED, EAGER, TUNED, directions
from dreamkit.kernels.bench.harness import GRAPHS, Bench, Case, measured
from dreamkit.kernels.bench.measurements import FLOOR, Record, Records, Verdict, at_least, at_most
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
LONG = 30.0  # seconds; when a case took as long, tuning is left out of the ones that follow


def work(images: int, width: int, is_backward: bool, *, dim: int = DIM, queries: int = QUERIES) -> Work:
    """Rows, the norm's weight and the matrix are read and the context is written, each once.

    Backward, context's gradient is read, rows and matrix are read again, and a gradient of each is written.
    """
    read = reads(images, width, dim=dim, queries=queries)
    context = ITEMSIZE * images * queries * width
    flops = 2.0 * images * queries * dim * width
    return Work(3 * read + 2 * context, 3 * flops) if is_backward else Work(read + context, flops)


def reads(images: int, width: int, *, dim: int = DIM, queries: int = QUERIES) -> int:
    """Bytes of rows, the norm's weight and the matrix."""
    return ITEMSIZE * dim * (images * queries + 1 + width)


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
                tuned = table == FORWARD and images <= FEW and bench.longest.get(table, 0.0) < LONG
                runs = candidates(sizes["queries"])
                yield from measured(
                    bench,
                    Case(
                        table,
                        _case(images, width),
                        partial(inputs, images, wide, bench.device, **sizes),
                        directions(runs, LEARNED, is_backward, bench.small, tuned),
                        work=work(images, wide, is_backward, **sizes),
                        graphs=True,
                        reads=reads(images, wide, **sizes),
                    ),
                )


def targets(records: Records) -> Iterator[Verdict]:
    """Each of all the sizes it is for, told by the worst of them."""
    few, many = [n for n in IMAGES if n <= FEW], [n for n in IMAGES if n >= MANY]
    graphs = FORWARD + GRAPHS
    for table in (FORWARD, graphs):
        how = table.removeprefix(FORWARD)
        yield _over(records, f"N <= {FEW}{how}", table, few, FEW_SPEEDUP)
        yield _over(records, f"N >= {MANY}{how}", table, many, MANY_SPEEDUP)
    times = [(name, records.value(graphs, name, OURS)) for name in _cases(few)]
    compiled = (COMPILED, TUNED)
    found = [_speedup(records, graphs, name, how) for name in _cases(few) for how in compiled]
    yield at_least(f"query projection, N <= {FEW}{GRAPHS}: 1 x {COMPILED}, in both modes", 1.0, found, "x")
    yield at_most(
        f"query projection, N <= {FEW}{GRAPHS}: at most {FEW_MICROSECONDS:g} microseconds",
        FEW_MICROSECONDS,
        [(None if time is None else 1e6 * time, name) for name, time in times],
        "microseconds",
    )
    shares = []
    for name in _cases(many):
        floor, time = records.value(graphs, name, FLOOR), records.value(graphs, name, OURS)
        shares.append((None if floor is None or time is None else 100 * floor / time, name))
    target = f"query projection, N >= {MANY}{GRAPHS}: {MANY_SHARE:.0%} of the roofline"
    yield at_least(target, 100 * MANY_SHARE, shares, "%")


def _over(records: Records, what: str, table: str, images: Sequence[int], wanted: float) -> Verdict:
    found = [_speedup(records, table, name, EAGER) for name in _cases(images)]
    return at_least(f"query projection, {what}: {wanted:g} x {EAGER}", wanted, found, f"x {EAGER}")


def _speedup(records: Records, table: str, case: str, other: str) -> tuple[float | None, str]:
    return records.speedup(table, case, other, OURS), case if other == EAGER else f"{case}, {other}"


def _cases(images: Sequence[int]) -> list[str]:
    return [_case(count, width) for count in images for width in WIDTHS]


def _case(images: int, width: int) -> str:
    return f"N {images}, C {width}"
