"""Sections in processes of their own, and on which device they run."""

import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bench_sections
from bench_sections import CPU, MACHINE
from dreamkit.errors import DreamkitError
from dreamkit.kernels.bench import isolated
from dreamkit.kernels.bench.harness import GRAPHS
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.measurements import OUT_OF_TIME, Cell, Record, Records, Verdict
from dreamkit.kernels.bench.results_page import Results
from dreamkit.kernels.bench.runner import Section, benchmark_device, measure_machine, run


def judge(records: Records) -> list[Verdict]:
    return [Verdict("a second", False, f"{len(records)} records")]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """Sections of which two break, each in processes of their own, and the folder of their results."""
    out = tmp_path_factory.mktemp("out")
    sections = (
        Section("ask", 1, bench_sections.ask),
        Section("cut", 1, bench_sections.cut),
        Section("quick", 1, bench_sections.quick, judge),
        Section("look", 1, bench_sections.look),
        Section("dying", 2, bench_sections.dying),
        Section("ask", 4, bench_sections.ask),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(bench_sections.LEFT, str(out / "left"))
        patch.setenv(bench_sections.PAGE, str(out / "benchmarks.md"))
        return run(sections, CPU, small=True, seconds=1000, out=out), out


def test_a_section_that_breaks_leaves_what_was_measured_and_the_next_one_runs(
    ran: tuple[Results, Path],
) -> None:
    results, out = ran
    assert results.failed
    assert [(*r.cell, r.failed) for r in results.records[:4]] == [
        ("cut", "one", "a", False),
        ("cut", "-", "-", True),
        ("table", "case", "a", False),
        ("table", "case", "b", False),
    ]
    written = json.loads((out / "results.json").read_text())
    assert [r["problem"] for r in written["records"] if r["case"] == "-"] == ["OSError: the disk is full"]
    assert written["targets"] == [{"target": "a second", "met": "not judged", "found": "a trial"}]


def test_a_candidate_that_ends_its_process_leaves_the_others_to_be_measured(
    ran: tuple[Results, Path],
) -> None:
    """What was found before is not measured again, and is known to the section."""
    results, _ = ran
    assert [(*r.cell, r.problem) for r in results.records[4:]] == [
        ("first", "case", "a", ""),
        *(
            (table, "case", name, "its process died with exit code 3" if name == "b" else "")
            for table in ("table", "table" + GRAPHS)
            for name in "abc"
        ),
        ("last", "case", "7", ""),
    ]


@pytest.mark.gpu
def test_a_capture_that_fails_leaves_the_others_to_be_captured(tmp_path: Path) -> None:
    sections = (Section("uncaptured", 1, bench_sections.uncaptured),)
    found = run(sections, benchmark_device("cuda", small=True), small=True, seconds=300, out=tmp_path)
    assert [(*record.cell, record.failed) for record in found.records] == [
        (table, "case", name, (table, name) == ("table" + GRAPHS, "b"))
        for table in ("table", "table" + GRAPHS)
        for name in "abc"
    ]


def test_each_section_is_written_before_the_next_one_runs(ran: tuple[Results, Path]) -> None:
    """One looks for it."""
    assert [r.cell for r in ran[0].records if "AssertionError" in r.problem] == []


def test_sections_share_the_time_and_hand_on_what_they_leave(ran: tuple[Results, Path]) -> None:
    left = [float(line) for line in (ran[1] / "left").read_text().split()]
    assert left == pytest.approx([100, 1000], abs=0.3 * 1000)
    assert left[0] < 100 and left[1] > 700


def test_results_replace_earlier_ones_whole(ran: tuple[Results, Path]) -> None:
    assert {path.name for path in ran[1].iterdir()} == {"results.json", "benchmarks.md", "left"}


# the one that is forked only waits
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_says_nothing_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "CONTEXT", multiprocessing.get_context("fork"))
    silent = isolated.sent(bench_sections.silent, until=time.monotonic() + 60, silence=0.5)
    assert next(silent) == "one"
    with pytest.raises(isolated.Broken, match=r"killed: nothing came for 0\.5 s"):
        next(silent)
    late = isolated.sent(bench_sections.silent, until=time.monotonic() + 0.5, silence=60)
    assert next(late) == "one"
    with pytest.raises(isolated.Stopped):
        next(late)
    assert multiprocessing.active_children() == []


def test_a_candidate_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that ended its process."""

    def sent(work: Any, *arguments: Any, until: float, silence: float) -> Iterator[Any]:
        failures = arguments[-1]
        yield from (Cell("table", "case", name) for name in "ab")
        if not failures:
            raise isolated.Broken("killed: nothing came")
        yield from (Record("table", "case", n, problem=failures.get(("table", "case", n), "")) for n in "abc")

    monkeypatch.setattr("dreamkit.kernels.bench.runner.sent", sent)
    monkeypatch.setattr("dreamkit.kernels.bench.runner._machine", lambda *_: MACHINE)
    sections = (Section("hangs", 1, bench_sections.quick),)
    found = run(sections, CPU, small=True, seconds=60, out=tmp_path)
    assert [record.problem for record in found.records] == ["", "killed: nothing came", ""]


def test_what_breaks_when_the_time_is_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(work: Any, *arguments: Any, until: float, silence: float) -> Iterator[Any]:
        yield Cell("table", "case", "a")
        time.sleep(max(0.0, until - time.monotonic()))
        raise isolated.Broken("it died")

    monkeypatch.setattr("dreamkit.kernels.bench.runner.GRACE", 0.1)
    monkeypatch.setattr("dreamkit.kernels.bench.runner.sent", sent)
    monkeypatch.setattr("dreamkit.kernels.bench.runner._machine", lambda *_: MACHINE)
    sections = (Section("broken", 1, bench_sections.quick), Section("late", 1, bench_sections.quick))
    found = run(sections, CPU, small=True, seconds=0.1, out=tmp_path)
    assert [(*record.cell, record.problem) for record in found.records] == [
        ("table", "case", "a", "it died"),
        ("broken", "-", "-", OUT_OF_TIME),
        ("late", "-", "-", OUT_OF_TIME),
    ]


@pytest.mark.parametrize(("name", "device"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cuda:2", None)])
def test_a_gpu_has_a_number(name: str, device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if device is None:
        with pytest.raises(
            DreamkitError, match="--device cuda:2 is not there; torch finds 2, cuda:0 to cuda:1"
        ):
            benchmark_device(name, small=False)
    else:
        assert benchmark_device(name, small=False) == torch.device(device)


def test_references_alone_are_not_measured() -> None:
    """The CPU has no kernels, as little as a GPU with `DREAMKIT_KERNELS=0` or an old one."""
    sent: list[Any] = []
    with pytest.raises(DreamkitError, match=r"no kernel would run.* DREAMKIT_KERNELS .* 8\.0 or newer"):
        measure_machine(sent.append, CPU, False)
    measure_machine(sent.append, CPU, True)
    assert [type(each) for each in sent] == [Machine]


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
