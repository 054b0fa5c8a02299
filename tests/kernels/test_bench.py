"""The harness: what is measured, in which order, and what becomes of failures and of a time that is up."""

import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from bench_sections import CPU, MACHINE, broken, case, same
from dreamkit.kernels.bench import label_loss
from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.figures import Figure, Work
from dreamkit.kernels.bench.harness import GRAPHS, MEMORY, WHOLE_MEMORY, Bench, Case, measured
from dreamkit.kernels.bench.machine import about
from dreamkit.kernels.bench.measurements import FLOOR, OUT_OF_TIME, Cell, Records


def bench(**settings: Any) -> Bench:
    return Bench(Clock(CPU, 0.0), MACHINE, small=True, **settings)


def test_candidates_are_measured_with_a_floor_and_as_graphs() -> None:
    found = Records(measured(bench(), case({"a": same, "b": same}, work=Work(2e9, 1e12), graphs=True)))
    assert [(r.table, r.candidate) for r in found] == [
        (table, name) for table in ("table", "table" + GRAPHS) for name in ("a", "b", FLOOR)
    ]
    assert all(record.figure is not None and record.figure.value > 0 for record in found)
    assert found.figure("table", "case", FLOOR) == Figure(2.0)


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []

    def candidate(name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: calls.append(name) or same(x)

    list(measured(bench(), case({"a": candidate("a"), "b": candidate("b")})))
    runs = [name for at, name in enumerate(calls) if at == 0 or calls[at - 1] != name]
    assert runs == ["a", "b"] * 3  # the check, and two rounds


@pytest.mark.parametrize(("size", "copies"), [(0, 1), (10, 64), (100, 20), (999, 3), (1000, 2), (5000, 2)])
def test_what_is_read_of_all_copies_is_twice_the_l2(size: int, copies: int) -> None:
    seen: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        seen[x.data_ptr()] = x
        return x

    list(measured(bench(), case({"a": keep}, work=Work(9, 9), reads=size)))
    assert len(seen) == copies


def test_a_candidate_that_fails_is_told_and_the_others_are_measured() -> None:
    found = Records(measured(bench(), case({"a": same, "b": broken, "c": same}, graphs=True)))
    assert [(r.candidate, r.failed) for r in found] == [("a", False), ("b", True), ("c", False)] * 2
    assert found[1].problem == "RuntimeError: out of luck"
    assert found.figure("table", "case", "b") is None


@pytest.mark.parametrize("tolerance", [0, 1e-3])
def test_a_candidate_that_computes_something_else_fails(tolerance: float) -> None:
    def off(x: Tensor) -> Tensor:
        return 1.002 * same(x)

    found = list(measured(bench(), case({"a": same, "b": off}, tolerance=tolerance)))
    assert [record.failed for record in found] == [False, True]
    assert ("to the bit" if tolerance == 0 else "differs from the first candidate's by 0.002") in found[
        1
    ].problem
    assert not any(record.failed for record in measured(bench(), case({"a": same, "b": off}, tolerance=0.01)))


def test_nan_is_no_agreement() -> None:
    found = list(measured(bench(), case({"a": same, "b": lambda x: x * float("nan")})))
    assert found[1].failed


def test_what_would_end_too_late_is_not_begun() -> None:
    late = bench(deadline=time.monotonic() - 1)
    found = list(measured(late, case({"a": broken, "b": broken})))
    assert [(record.problem, record.failed) for record in found] == [(OUT_OF_TIME, False)] * 2
    soon = bench(deadline=time.monotonic() + 5, longest={"table": 3.0})
    assert not soon.has_time("table") and soon.has_time("another")


class Failing(Clock):
    """Measures, but that it fails on the call that is its `number`, counted from 0; `sound` is what is left of it."""

    def __init__(self, number: int, sound: bool = True) -> None:
        super().__init__(CPU, 0.0)
        self.number, self.sound = number, sound

    def samples(self, call: Callable[[], Any], parts: int = 1) -> list[float]:
        self._count()
        return super().samples(call, parts)

    def peak_bytes(self, call: Callable[[], Any]) -> tuple[int, int]:
        self._count()
        return super().peak_bytes(call)

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        self._count()
        return super().captured(call)

    def _count(self) -> None:
        self.number -= 1
        if self.number == -1:
            raise torch.OutOfMemoryError("no memory")

    def is_sound(self) -> bool:
        return self.sound


TABLES = ("table", "table" + MEMORY, "table" + WHOLE_MEMORY, "table" + GRAPHS)


@pytest.mark.parametrize(
    ("number", "failing"),
    [(1, TABLES), (4, TABLES), (7, TABLES[1:3]), (10, TABLES[3:]), (13, TABLES[3:]), (16, TABLES[3:])],
)
def test_a_candidate_may_fail_anywhere(number: int, failing: Sequence[str]) -> None:
    """In either round, where memory is measured, while it is captured, or after it."""
    asked = case({"a": same, "b": same, "c": same}, graphs=True, memory=True)
    found = Records(measured(Bench(Failing(number), MACHINE, small=True), asked))
    assert [r.cell for r in found if r.failed] == [(table, "case", "b") for table in failing]
    assert {r.problem for r in found if r.failed} == {"OutOfMemoryError: no memory"}
    assert len(found) == 3 * len(TABLES)


def test_without_inputs_all_candidates_fail() -> None:
    def inputs() -> tuple[Any, ...]:
        raise torch.OutOfMemoryError("no memory")

    found = list(measured(bench(), Case("table", "case", inputs, {"a": same, "b": same}, graphs=True)))
    assert [(r.table, r.candidate, r.failed) for r in found] == [
        (table, name, True) for table in ("table", "table" + GRAPHS) for name in ("a", "b")
    ]


@pytest.mark.parametrize("number", [1, 7, 10])
def test_what_leaves_nothing_to_measure_with_goes_on_elsewhere(number: int) -> None:
    """The error ends the process, and the next one measures what is missing, but for what failed."""
    asked = case({"a": same, "b": same, "c": same}, graphs=True, memory=True)
    begun: list[Cell] = []
    found = Records()
    with pytest.raises(torch.OutOfMemoryError):
        for record in measured(Bench(Failing(number, False), MACHINE, small=True, begun=begun.append), asked):
            found.append(record)
    assert begun[-1].candidate == "b" and begun[-1] not in {record.cell for record in found}
    again = bench(found=found, failures={begun[-1]: "it broke"})
    both = Records([*found, *measured(again, asked)])
    assert {record.problem for record in both if record.candidate == "b"} - {""} == {"it broke"}
    assert sorted(r.cell for r in both) == sorted((t, "case", name) for t in TABLES for name in "abc")
    assert not any(record.failed for record in both if record.candidate != "b")
    assert list(measured(bench(found=both), asked)) == []


def test_the_device_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events, streams and graphs are those of the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    Clock(torch.device("cuda:1"), 0.0)
    assert current == [torch.device("cuda:1")]


def test_triton_says_its_version_by_itself() -> None:
    """Distributions of it have several names."""
    import triton

    assert about(CPU)["triton"] == triton.__version__


@pytest.mark.parametrize("has_own", [True, False])
def test_the_loss_is_measured_beside_torchs_own(has_own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has one, in time and memory, whether or not the head is trained."""
    if not has_own:
        monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    elif not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("torch has none")
    found = Records(label_loss.section(bench()))
    for table, measure in product((label_loss.LEARNED, label_loss.FROZEN), ("", MEMORY, WHOLE_MEMORY)):
        names = {record.candidate for record in found if record.table == table + measure} - {FLOOR}
        assert names == {"eager", "ours", *([label_loss.TORCH] if has_own else [])}
    assert [record.problem for record in found if record.failed] == []
