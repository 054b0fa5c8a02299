"""The harness: what is measured, in which order, and what becomes of failures and of a time that is up."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from dreamkit.errors import DreamkitError
from dreamkit.kernels.bench import label_loss, query_projection
from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.figures import Figure, Work
from dreamkit.kernels.bench.harness import GRAPHS, MEMORY, WHOLE_MEMORY, Bench, Case, measured
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.records import FLOOR, OUT_OF_TIME, Record, Records, Verdict
from dreamkit.kernels.bench.report import RAN, TRIAL, page, show, show_verdicts, write, written
from dreamkit.kernels.bench.run import Results, Section, benchmark_device, run

CPU = torch.device("cpu")
RATES = {torch.bfloat16: Figure(1e12), torch.float32: Figure(1e11)}
MACHINE = Machine(Figure(1e9), RATES, l2_bytes=1000, about={"device": "none", "date": "2026-01-01"})


def bench(**settings: Any) -> Bench:
    return Bench(Clock(CPU, 0.0), MACHINE, small=True, **settings)


def case(candidates: dict[str, Callable[..., Any]], **settings: Any) -> Case:
    return Case("table", "case", lambda: (torch.ones(4),), candidates, **settings)


def same(x: Tensor) -> Tensor:
    return x + 1


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("out of\n  luck")


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

    list(measured(bench(), case({"a": candidate("a"), "b": candidate("b")}, rotated=False)))
    runs = [name for at, name in enumerate(calls) if at == 0 or calls[at - 1] != name]
    assert runs == ["a", "b"] * 3  # the check, and two rounds


@pytest.mark.parametrize(("size", "copies"), [(10, 64), (100, 20), (999, 3), (1000, 2), (5000, 2)])
def test_copies_of_the_inputs_are_twice_the_l2_together(size: int, copies: int) -> None:
    seen: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        seen[x.data_ptr()] = x
        return x

    list(measured(bench(), case({"a": keep}, work=Work(size, 0))))
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


def quick(bench: Bench) -> Iterator[Record]:
    yield from measured(bench, case({"a": same, "b": same}))


def cut(bench: Bench) -> Iterator[Record]:
    yield Record("cut", "one", "a", figure=Figure(1.0))
    raise OSError("the disk is full")


def judge(records: Records) -> list[Verdict]:
    return [Verdict("a second", False, f"{len(records)} records")]


def test_a_section_that_breaks_leaves_what_was_measured_and_the_next_one_runs(tmp_path: Path) -> None:
    sections = (Section("cut", 1, cut), Section("quick", 1, quick, judge))
    results = run(sections, CPU, small=True, seconds=60, out=tmp_path)
    assert results.failed
    assert [(r.table, r.failed) for r in results.records] == [
        ("cut", False),
        ("cut", True),
        ("table", False),
        ("table", False),
    ]
    written = json.loads((tmp_path / "results.json").read_text())
    assert [r["problem"] for r in written["records"] if r["failed"]] == ["OSError: the disk is full"]
    assert written["targets"] == [{"target": "a second", "met": "not judged", "found": "a trial"}]


def test_what_does_not_end_is_stopped_and_the_next_section_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamkit.kernels.bench.run.GRACE", 0.2)

    def endless(x: Tensor) -> Tensor:
        time.sleep(60)
        return x

    def hangs(bench: Bench) -> Iterator[Record]:
        yield from measured(bench, case({"a": endless}))

    begun = time.monotonic()
    sections = (Section("hangs", 1, hangs), Section("quick", 1, quick))
    found = run(sections, CPU, small=True, seconds=0.5, out=tmp_path)
    assert time.monotonic() - begun < 30 and not found.failed
    assert [record.problem for record in found.records] == [OUT_OF_TIME] * 3


def test_each_section_is_written_before_the_next_one_runs(tmp_path: Path) -> None:
    def look(bench: Bench) -> Iterator[Record]:
        assert "### Table" in (tmp_path / "benchmarks.md").read_text()
        yield from ()

    results = run(
        (Section("quick", 1, quick), Section("look", 1, look)), CPU, small=True, seconds=60, out=tmp_path
    )
    assert not results.failed


def test_sections_share_the_time_and_hand_on_what_they_leave(tmp_path: Path) -> None:
    deadlines: list[float] = []

    def ask(bench: Bench) -> Iterator[Record]:
        deadlines.append(bench.deadline - time.monotonic())
        yield from ()

    sections = [Section(f"{share}", share, ask) for share in (1, 2, 1)]
    run(sections, CPU, small=True, seconds=400, out=tmp_path)
    assert deadlines == pytest.approx([100, 400 * 2 / 3, 400], abs=20)


def results(trial: bool) -> Results:
    records = Records(
        [
            Record("times", "one", "eager", figure=Figure(1e-3, 1e-5)),
            Record("times", "one", FLOOR, figure=Figure(1e-4)),
            Record("times", "one", "ours", figure=Figure(2.5e-4, 1e-6)),
            Record("times", "two", "eager", figure=Figure(1e-3, 1e-4)),
            Record("times", "two", "ours", figure=Figure(9.5e-4)),
            Record("times", "three", "eager", problem=OUT_OF_TIME),
            Record("times", "three", "ours", problem="RuntimeError: no", failed=True),
        ]
    )
    return Results(MACHINE, trial, records, [Verdict("twice", True, "4 x"), Verdict("thrice", None, "")])


PAGE = """Measured on: device none, date 2026-01-01.

| target | | found |
|---|---|---|
| twice | met | 4 x |
| thrice | open |  |

### Machine

|  | measured |
| --- | --- |
| copying | 1 GB/s |
| matrices of bfloat16 | 1 TFLOP/s |
| matrices of float32 | 100 GFLOP/s |

### Times

|  | eager | ours | floor |
| --- | --- | --- | --- |
| one | 1 ± 0.01 ms | 250 ± 1 µs (4.00 x) | 100 µs |
| two | 1 ± 0.1 ms | 950 µs (no difference) |  |
| three | not measured: out of time | failed |  |

### Failed

- times, three, ours: RuntimeError: no
"""


def test_the_page() -> None:
    assert page(results(trial=False)) == PAGE


def test_a_trial_has_no_figure_anywhere(tmp_path: Path) -> None:
    found = results(trial=True)
    write(found, tmp_path)
    values = json.loads((tmp_path / "results.json").read_text())
    assert {record["value"] for record in values["records"]} == {None} and values["trial"]
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.startswith(TRIAL) and RAN in text and "Measured on" not in text
    console = Console(record=True, width=200, file=StringIO())
    show(found, found.records, console)
    show_verdicts(found, console)
    for said in (text, console.export_text()):
        assert not any(unit in said for unit in (" ms", " µs", "GB/s", "FLOP/s", "met"))


def test_json_has_what_was_measured(tmp_path: Path) -> None:
    write(results(trial=False), tmp_path)
    values = json.loads((tmp_path / "results.json").read_text())
    by_case = {(r["case"], r["candidate"]): (r["value"], r["spread"]) for r in values["records"]}
    assert by_case["one", "eager"] == (1e-3, 1e-5)
    assert by_case["three", "ours"] == (None, None)
    assert values["machine"] == {"device": "none", "date": "2026-01-01", "L2": 1000}


@pytest.mark.parametrize(
    ("figure", "unit", "said"),
    [
        (Figure(1.2345), "s", "1.23 s"),
        (Figure(0.0123, 0.0001), "s", "12.3 ± 0.1 ms"),
        (Figure(5.678e-6), "s", "5.68 µs"),
        (Figure(0.0), "s", "0 µs"),
        (Figure(18.9e9), "B", "18.9 GB"),
        (Figure(4.012e12), "B/s", "4.01 TB/s"),
        (Figure(1234.5), "/s", "1234 /s"),
    ],
)
def test_figures_are_written_with_three_digits(figure: Figure, unit: Any, said: str) -> None:
    assert written(figure, unit) == said


def test_nothing_is_measured_on_a_cpu() -> None:
    with pytest.raises(DreamkitError, match="on cpu nothing is measured; add --small"):
        benchmark_device("cpu", small=False)
    with pytest.raises(DreamkitError, match="--device gpu is none that torch knows"):
        benchmark_device("gpu", small=False)
    assert benchmark_device("cpu", small=True) == CPU


def test_where_no_gpu_is_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DreamkitError, match=r"no GPU was found.*--device cpu --small"):
        benchmark_device("cuda", small=False)


def sized(ours: float, images: Sequence[int] = query_projection.IMAGES) -> Records:
    """Times at the sizes that are measured, in proportion to the images; ours as long as it says, per image."""
    times = {"eager": 20.0, "torch.compile": 6.0, "ours": ours, "one launch": 1.5, FLOOR: 1.0}
    return Records(
        Record(table, f"N {count}, C {width}", name, figure=Figure(1e-6 * count * time))
        for count, width in product(images, query_projection.WIDTHS)
        for table in (query_projection.FORWARD, query_projection.FORWARD + GRAPHS)
        for name, time in times.items()
    )


def test_targets_of_the_query_projection() -> None:
    """They are for what users get, and not for a path that would have been faster."""
    assert [verdict.met for verdict in query_projection.targets(sized(1.5))] == [True] * 7
    verdicts = list(query_projection.targets(sized(9.0)))
    assert [verdict.met for verdict in verdicts] == [False, True, False, True, False, False, False]
    assert verdicts[5].found == "36.00 microseconds (N 4, C 768), 500% too much"
    assert verdicts[6].found.startswith("11.11 %") and verdicts[6].found.endswith(", 83% short")


def test_targets_that_were_not_reached_are_open() -> None:
    verdicts = list(query_projection.targets(sized(1.5, images=(1,))))
    assert {verdict.met for verdict in verdicts} == {None}
    assert [verdict.found for verdict in verdicts if "N >=" in verdict.target] == ["not measured"] * 3


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
