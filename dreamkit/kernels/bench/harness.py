"""Measures the candidates of a case: warmed up, agreeing, over rotated inputs, each in two interleaved rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.figures import Figure, Work
from dreamkit.kernels.bench.isolated import said
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.measurements import FLOOR, OUT_OF_TIME, Cell, Record, Records

MOST_COPIES = 64  # of a case's inputs
GRAPHS = ", CUDA graphs"  # what the name of a table ends in
Pass = Callable[[], Any] | str  # all copies once; or why not
Result = TypeVar("Result")
MEMORY, WHOLE_MEMORY = ", memory above", ", peak memory"


def _unheard(cell: Cell) -> None:
    pass


@dataclass
class Bench:
    """Where it is measured: `small` runs miniatures once, and its times mean nothing. `deadline` is the section's.

    A section goes on in another process where one broke: `found` is what it yielded so far, and `failures` are the
    cells that broke one, and how. `begun` is called with a cell before anything is tried for it.
    """

    clock: Clock
    machine: Machine
    small: bool
    deadline: float = math.inf
    found: Records = field(default_factory=Records)
    failures: Mapping[Cell, str] = field(default_factory=dict)
    begun: Callable[[Cell], None] = _unheard
    longest: dict[str, float] = field(default_factory=dict)  # seconds that a case of a table took

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def has_time(self, table: str) -> bool:
        """Whether a case twice as long as the longest of its table would end in time: later ones are often larger."""
        return time.monotonic() + 2 * self.longest.get(table, 0.0) < self.deadline


@dataclass(frozen=True)
class Case:
    """One row of a table, whose columns are the candidates.

    `inputs` makes one copy of what candidates are called with. They must give the same: up to a relative error of
    `tolerance`, or, where it is 0, to the bit. `work` tells the floor. `graphs`: also as CUDA graphs. `memory`: also
    the most that is allocated. `reads` are the bytes of its inputs that a call reads: candidates are called with copy
    after copy, more than the L2 holds. Where it is 0, they are called with the one.
    """

    table: str
    name: str
    inputs: Callable[[], tuple[Any, ...]]
    candidates: Mapping[str, Callable[..., Any]]
    work: Work | None = None
    dtype: torch.dtype = torch.bfloat16
    tolerance: float = 0.02
    graphs: bool = False
    memory: bool = False
    reads: float = 0.0

    @property
    def tables(self) -> list[str]:
        """What it is a row of."""
        others = [self.table + MEMORY] * self.memory + [self.table + GRAPHS] * self.graphs
        return [self.table, *others]


def measured(bench: Bench, case: Case) -> Iterator[Record]:
    """The records of a case that are not found yet; a candidate that fails leaves the others to be measured."""
    if all(_is_found(bench, case, table) for table in case.tables):
        return
    if not bench.has_time(case.table):
        if not _is_found(bench, case, case.table):
            yield from (Record(case.table, case.name, name, problem=OUT_OF_TIME) for name in case.candidates)
        return
    begin = time.monotonic()
    yield from _measured(bench, case)
    bench.clock.free()
    took = time.monotonic() - begin
    bench.longest[case.table] = max(took, bench.longest.get(case.table, 0.0))


def _is_found(bench: Bench, case: Case, table: str) -> bool:
    """Whether the table has all of the case's candidates."""
    return {Cell(table, case.name, name) for name in case.candidates} <= bench.found.cells


def _measured(bench: Bench, case: Case) -> Iterator[Record]:
    copies = _inputs(bench, case)
    if isinstance(copies, str):
        for table in case.tables:
            if not _is_found(bench, case, table):
                yield from (
                    Record(table, case.name, name, problem=copies, failed=True) for name in case.candidates
                )
        return
    passes: dict[str, Pass] = {}
    expected: list[Tensor] = []
    for name, run in case.candidates.items():
        check = partial(_checked, run, copies[0], expected, case.tolerance)
        checked = _tried(bench, Cell(case.table, case.name, name), check)
        passes[name] = _over(run, copies) if checked is None else checked
    expected.clear()
    if not _is_found(bench, case, case.table):
        yield from _times(bench, case, case.table, passes, len(copies))
    if case.memory and not _is_found(bench, case, case.table + MEMORY):
        yield from _memory(bench, case, passes, copies[:1])
    if case.graphs and not _is_found(bench, case, case.table + GRAPHS):
        for name, call in passes.items():
            if not isinstance(call, str):
                cell = Cell(case.table + GRAPHS, case.name, name)
                passes[name] = _tried(bench, cell, partial(bench.clock.captured, call))
        yield from _times(bench, case, case.table + GRAPHS, passes, len(copies))


def _tried(bench: Bench, cell: Cell, attempt: Callable[[], Result]) -> Result | str:
    """What the attempt gives, or how it failed, now or in an earlier process."""
    if cell in bench.failures:
        return bench.failures[cell]
    bench.begun(cell)
    try:
        return attempt()
    except Exception as error:  # whatever goes wrong in one is told, and the others are measured
        return _survived(bench, error)


def _survived(bench: Bench, error: Exception) -> str:
    """What is told of it; where it leaves a process in which nothing can be measured, it is raised to end that."""
    if not bench.clock.is_sound():
        raise error
    return said(error)


def _inputs(bench: Bench, case: Case) -> list[tuple[Any, ...]] | str:
    """Copies of them, or why there are none."""
    try:
        return [case.inputs() for _ in range(_copies(bench, case))]
    except Exception as error:
        return _survived(bench, error)


def _checked(
    run: Callable[..., Any], inputs: tuple[Any, ...], expected: list[Tensor], tolerance: float
) -> None:
    """What it gives is what is expected, or, of the first one, will be."""
    found = _tensors(run(*inputs))
    if expected:
        _check_same(expected, found, tolerance)
    else:
        expected += found


def _times(bench: Bench, case: Case, table: str, passes: dict[str, Pass], copies: int) -> Iterator[Record]:
    """Of the passes in two rounds. Those that fail are replaced by how."""
    samples: dict[str, list[list[float]]] = {name: [] for name in passes}
    for _ in range(2):
        for name, call in passes.items():
            if isinstance(call, str):
                continue
            timed = _tried(bench, Cell(table, case.name, name), partial(bench.clock.samples, call, copies))
            if isinstance(timed, str):
                passes[name] = timed
            else:
                samples[name].append(timed)
    for name, call in passes.items():
        if isinstance(call, str):
            yield Record(table, case.name, name, problem=call, failed=True)
        else:
            yield Record(table, case.name, name, figure=Figure.of(*samples[name]))
    if case.work is not None:
        machine = bench.machine
        floor = case.work.floor(machine.bandwidth.value, machine.rates[case.dtype].value)
        yield Record(table, case.name, FLOOR, figure=Figure(floor))


def _memory(
    bench: Bench, case: Case, passes: Mapping[str, Pass], copy: Sequence[tuple[Any, ...]]
) -> Iterator[Record]:
    """Of one call each."""
    above, whole = case.table + MEMORY, case.table + WHOLE_MEMORY
    peaks: dict[str, tuple[int, int] | str] = {}
    for name, call in passes.items():
        once = partial(bench.clock.peak_bytes, _over(case.candidates[name], copy))
        peaks[name] = call if isinstance(call, str) else _tried(bench, Cell(above, case.name, name), once)
    for name, peak in peaks.items():
        for number, table in enumerate((above, whole)):
            if isinstance(peak, str):
                yield Record(table, case.name, name, "B", problem=peak, failed=True)
            else:
                yield Record(table, case.name, name, "B", Figure(peak[number]))


def _copies(bench: Bench, case: Case) -> int:
    """Enough that twice the L2 is read of all of them: when one's turn comes again, none of it is left there."""
    if not case.reads:
        return 1
    return max(2, min(MOST_COPIES, math.ceil(2 * bench.machine.l2_bytes / case.reads)))


def _over(run: Callable[..., Any], copies: Sequence[tuple[Any, ...]]) -> Callable[[], None]:
    def call() -> None:
        for inputs in copies:
            run(*inputs)

    return call


def _tensors(result: Any) -> list[Tensor]:
    """The tensors of a result that is one, or several, some of which may be None."""
    several = result if isinstance(result, (tuple, list)) else [result]
    return [each.detach() for each in several if isinstance(each, Tensor)]


def _check_same(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> None:
    """The error is that of whole tensors: ||found - expected|| / ||expected||."""
    if len(expected) != len(found):
        raise ValueError(f"it gives {len(found)} tensors, and the first candidate {len(expected)}")
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        if tolerance == 0 and not torch.equal(one, other):
            raise ValueError(f"tensor {number} is not the first candidate's to the bit")
        error = (other.float() - one.float()).norm() / one.float().norm().clamp(min=1e-30)
        if not error <= tolerance:
            raise ValueError(
                f"tensor {number} differs from the first candidate's by {error:.2g}, allowed is {tolerance:g}"
            )
