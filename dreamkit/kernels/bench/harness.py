"""Measures the candidates of a case: warmed up, agreeing, over rotated inputs, each in two interleaved rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.figures import Figure, Work
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.records import FLOOR, OUT_OF_TIME, Record

MOST_COPIES = 64  # of a case's inputs
GRAPHS = ", CUDA graphs"  # what the name of a table ends in
Pass = Callable[[], Any] | str  # all copies once; or why not
MEMORY, WHOLE_MEMORY = ", memory above", ", peak memory"


@dataclass
class Bench:
    """Where it is measured: `small` runs miniatures once, and its times mean nothing. `deadline` is the section's."""

    clock: Clock
    machine: Machine
    small: bool
    deadline: float = math.inf
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
    the most that is allocated. `rotated` calls them with copy after copy of the inputs, more than the L2 holds.
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
    rotated: bool = True


def measured(bench: Bench, case: Case) -> Iterator[Record]:
    """The records of a case; a candidate that fails leaves the others to be measured."""
    if not bench.has_time(case.table):
        for name in case.candidates:
            yield Record(case.table, case.name, name, problem=OUT_OF_TIME)
        return
    begin = time.monotonic()
    yield from _measured(bench, case)
    bench.clock.free()
    took = time.monotonic() - begin
    bench.longest[case.table] = max(took, bench.longest.get(case.table, 0.0))


def _measured(bench: Bench, case: Case) -> Iterator[Record]:
    copies = [case.inputs() for _ in range(_copies(bench, case))]
    passes: dict[str, Pass] = {}
    expected: list[Tensor] | None = None
    for name, run in case.candidates.items():
        try:
            found = _tensors(run(*copies[0]))
            if expected is not None:
                _check_same(expected, found, case.tolerance)
        except Exception as error:  # whatever goes wrong in one is told, and the others are measured
            passes[name] = _said(error)
            continue
        expected = found if expected is None else expected
        passes[name] = _over(run, copies)
    del expected
    yield from _times(bench, case, case.table, passes, len(copies))
    if case.memory:
        for name in (name for name, call in passes.items() if not isinstance(call, str)):
            above, peak = bench.clock.peak_bytes(_over(case.candidates[name], copies[:1]))
            yield Record(case.table + MEMORY, case.name, name, "B", Figure(above))
            yield Record(case.table + WHOLE_MEMORY, case.name, name, "B", Figure(peak))
    if case.graphs:
        for name, call in passes.items():
            try:
                passes[name] = call if isinstance(call, str) else bench.clock.captured(call)
            except Exception as error:
                passes[name] = _said(error)
        yield from _times(bench, case, case.table + GRAPHS, passes, len(copies))


def _times(bench: Bench, case: Case, table: str, passes: Mapping[str, Pass], copies: int) -> Iterator[Record]:
    rounds = [
        {
            name: bench.clock.samples(call, copies)
            for name, call in passes.items()
            if not isinstance(call, str)
        }
        for _ in range(2)
    ]
    for name, call in passes.items():
        if isinstance(call, str):
            yield Record(table, case.name, name, problem=call, failed=True)
        else:
            yield Record(table, case.name, name, figure=Figure.of(rounds[0][name], rounds[1][name]))
    if case.work is not None:
        machine = bench.machine
        floor = case.work.floor(machine.bandwidth.value, machine.rates[case.dtype].value)
        yield Record(table, case.name, FLOOR, figure=Figure(floor))


def _copies(bench: Bench, case: Case) -> int:
    """Enough that all of them together are twice the L2: when one's turn comes again, none of it is left there."""
    if not case.rotated:
        return 1
    one = case.work.bytes if case.work is not None else bench.machine.l2_bytes
    return max(2, min(MOST_COPIES, math.ceil(2 * bench.machine.l2_bytes / max(one, 1))))


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


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
