"""The benchmarks check that candidates agree, report failures in their rows, and print a table."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command, measure
from benchmarks.measure import Case, Rates, Row, check_equal

CPU = torch.device("cpu")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--device", "cpu", "--small", *arguments])
    return command.main()


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("out | of luck\nand more")


@pytest.mark.parametrize(
    ("expected", "actual", "tolerance", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0, None),
        ([1.0, 2.0], [1.0, 2.001], 0.01, None),
        ([1.0, 2.0], [1.0, 2.001], 0, "tensor 0 is not bitwise identical to the reference"),
        ([3.0, 4.0], [3.0, 5.0], 0.1, "expected a relative error of at most 0.1, got 0.2"),
        ([1.0, 2.0], [1.0, float("nan")], 0.1, "got nan"),
        ([1.0, 2.0], [1.0], 0.1, r"expected shapes \[\(2,\)\], got \[\(1,\)\]"),
    ],
)
def test_tensors_are_equal_up_to_the_tolerance(
    expected: list[float], actual: list[float], tolerance: float, message: str | None
) -> None:
    tensors = [torch.tensor(expected)], [torch.tensor(actual)]
    if message is None:
        check_equal(*tensors, tolerance)
    else:
        with pytest.raises(ValueError, match=message):
            check_equal(*tensors, tolerance)


def test_a_missing_tensor_is_a_difference() -> None:
    with pytest.raises(ValueError, match="expected shapes"):
        check_equal([torch.ones(1), torch.ones(1)], [torch.ones(1)], 0.1)


def test_candidates_are_called_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    candidates = {name: lambda x, name=name: calls.append(name) or x for name in ("a", "b")}
    monkeypatch.setattr(measure, "time_call", lambda call, device, small: call().sum().item())
    rows, _ = measure.measure(Case("case", lambda: [torch.ones(3)], candidates), CPU, small=False)
    assert calls == ["a", "b"] * (1 + measure.ROUNDS)
    assert [row.seconds for row in rows] == [[3.0] * measure.ROUNDS] * 2


def test_the_operations_of_the_reference_are_counted() -> None:
    case = Case("case", lambda: [torch.ones(2, 3), torch.ones(3, 5)], {"a": torch.mm})
    assert measure.measure(case, CPU, small=True)[1] == 2 * 2 * 3 * 5


def test_a_candidate_marked_bitwise_has_no_tolerance() -> None:
    candidates = {"a": lambda x: x, "b": lambda x: x + 1e-5, "c": lambda x: x + 1e-5}
    rows, _ = measure.measure(
        Case("case", lambda: [torch.ones(3)], candidates, bitwise=("c",)), CPU, small=True
    )
    assert [bool(row.failure) for row in rows] == [False, False, True]


def test_a_failure_is_reported_in_its_row_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cases(device: torch.device, small: bool) -> Iterator[Case]:
        yield Case("first", lambda: [torch.ones(3)], {"a": torch.neg, "b": broken, "c": torch.neg})
        yield Case("second", lambda: [broken(torch.ones(3))], {"a": torch.neg})
        yield Case("third", lambda: [torch.ones(3)], {"a": broken, "b": torch.neg, "c": torch.abs})

    monkeypatch.setattr(command, "BENCHMARKS", {"bad": cases})
    assert run(monkeypatch) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in capsys.readouterr().out.splitlines()]
    rows = {(case, name): time for case, name, time in filter(None, cells)}
    assert rows["first", "b"] == rows["second", "all"] == "failed: RuntimeError: out / of luck"
    assert all("±" in rows[row] for row in [("first", "a"), ("first", "c"), ("third", "b")])
    assert rows["third", "c"].startswith("failed: ValueError: tensor 0: expected a relative error")


@pytest.mark.parametrize("name", ["query_projection", "assemble_embeddings", "label_loss"])
def test_a_kernel_s_benchmark_runs_in_miniature(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bash .ci/full bench` runs all benchmarks."""
    assert run(monkeypatch, "--only", name) == 0
    machine, *_, last = capsys.readouterr().out.splitlines()
    assert machine.startswith("Machine: CPU") and f"torch {torch.__version__}" in machine
    assert last.count("|") == 1 + len(command.HEAD)


def test_without_a_gpu_the_miniature_is_suggested(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    with pytest.raises(SystemExit) as exit_code:
        command.main()
    assert exit_code.value.code == 2
    assert "no GPU found; add --device cpu --small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "least_bytes", "cells"),
    [
        (Row("case", "a", [2e-3, 1e-3, 4e-3]), 1e6, ["case", "a", "2 ± 3 ms", "", "1 MB", "50%"]),
        (Row("case", "b", [1e-3]), 1e5, ["case", "b", "1 ± 0 ms", "2.00 x", "4 GFLOP", "40%"]),
        (Row("case", "c", failure="why"), 1e6, ["case", "c", "failed: why", "", "", ""]),
    ],
)
def test_a_row_compares_with_the_reference_and_the_machine(row: Row, least_bytes: float, cells: Any) -> None:
    reference = row if row.candidate == "a" else Row("case", "a", [2e-3])
    assert command.table_cells(row, reference, least_bytes, 4e9, Rates(1e9, 1e13)) == cells
