"""Pages, JSON and what is said on the terminal."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench_sections import MACHINE
from dreamkit.kernels.bench.figures import Figure
from dreamkit.kernels.bench.measurements import FLOOR, OUT_OF_TIME, Record, Records, Verdict
from dreamkit.kernels.bench.results_page import RAN, TRIAL, Results, page, show, show_verdicts, write, written


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
