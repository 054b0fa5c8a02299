"""The results of a benchmark: as JSON, as tables of a page, and on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Console
from rich.table import Table

from dreamkit.errors import DreamkitError
from dreamkit.kernels.bench.figures import Figure, differ
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.measurements import FLOOR, Record, Records, Unit, Verdict

TRIAL = "A trial in miniature: it shows that the program runs, and no figure of it means anything."
RAN = "ran"  # in the place of a figure, in a trial

_SCALES: Mapping[Unit, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1.0, "B")),
    "/s": ((1.0, "/s"),),
    "B/s": ((1e12, "TB/s"), (1e9, "GB/s")),
    "FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s")),
}


@dataclass
class Results:
    """What was found so far, on which machine; `trial`: in miniature, so that no time means anything."""

    machine: Machine
    trial: bool
    records: Records = field(default_factory=Records)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(record.failed for record in self.records)


def written(figure: Figure, unit: Unit) -> str:
    """Three digits and the spread, such as `5.31 ± 0.02 µs`."""
    scale, name = next((s for s in _SCALES[unit] if abs(figure.value) >= s[0]), _SCALES[unit][-1])
    spread = f" ± {figure.spread / scale:.2g}" if figure.spread else ""
    value = figure.value / scale
    digits = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return f"{digits}{spread} {name}"


def tables(records: Iterable[Record], trial: bool) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of each table, in the order of the records; the rest of a row is how the first differs."""
    by_table: dict[str, list[Record]] = {}
    for record in records:
        by_table.setdefault(record.table, []).append(record)
    for title, cells in by_table.items():
        candidates = list(dict.fromkeys(cell.candidate for cell in cells))
        candidates.sort(key=lambda name: name == FLOOR)  # the floor comes last
        rows = []
        for case, group in groupby(cells, key=lambda cell: cell.case):
            found = {cell.candidate: cell for cell in group}
            rows.append([case, *(_cell(found, name, candidates[0], trial) for name in candidates)])
        yield title, ["", *candidates], rows


def _cell(found: Mapping[str, Record], name: str, first: str, trial: bool) -> str:
    record = found.get(name)
    if record is None or record.figure is None:
        return "" if record is None else "failed" if record.failed else record.problem
    if trial:
        return RAN
    said = written(record.figure, record.unit)
    base = found.get(first)
    if name in (first, FLOOR) or base is None or base.figure is None or record.unit != "s":
        return said
    if not differ(base.figure, record.figure):
        return f"{said} (no difference)"
    return f"{said} ({base.figure.value / record.figure.value:.2f} x)"


def page(results: Results) -> str:
    """The tables and targets, as docs/benchmarks.md has them."""
    about = ", ".join(f"{name} {said}" for name, said in results.machine.about.items())
    lines = [TRIAL if results.trial else f"Measured on: {about}.", ""]
    if results.verdicts:
        lines += ["| target | | found |", "|---|---|---|"]
        lines += [" | ".join(["", *verdict, ""]).strip() for verdict in _judged(results)] + [""]
    for title, head, rows in tables(_all(results), results.trial):
        lines += [f"### {title[:1].upper()}{title[1:]}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]
    failures = [f"- {said}" for said in failed(results.records)]
    if failures:
        lines += ["### Failed", "", *failures, ""]
    return "\n".join(lines)


def failed(records: Iterable[Record]) -> list[str]:
    """A line for each candidate that failed."""
    return [f"{r.table}, {r.case}, {r.candidate}: {r.problem}" for r in records if r.failed]


def _judged(results: Results) -> Iterator[tuple[str, str, str]]:
    for verdict in results.verdicts:
        if results.trial:
            yield verdict.target, "not judged", "a trial"
        else:
            said = {True: "met", False: "missed", None: "open"}[verdict.met]
            yield verdict.target, said, verdict.found


def _all(results: Results) -> Iterator[Record]:
    """The machine's own figures, and what was measured on it."""
    machine = results.machine
    yield Record("machine", "copying", "measured", "B/s", machine.bandwidth)
    for dtype, rate in machine.rates.items():
        yield Record("machine", f"matrices of {str(dtype)[6:]}", "measured", "FLOP/s", rate)
    yield from results.records


def make_folder(out: Path) -> None:
    """The folder that results will be written to.

    Raises:
        DreamkitError: they cannot be.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DreamkitError(
            f"--out {out}: no results can be written there ({error}); give another folder"
        ) from error


def write(results: Results, out: Path) -> None:
    """`results.json` and `benchmarks.md` in the folder `out`. A trial's have no figures."""

    def plain(record: Record) -> dict[str, Any]:
        value, spread = (None, None) if results.trial or record.figure is None else record.figure
        return {
            **{name: said for name, said in vars(record).items() if name != "figure"},
            "ran": record.figure is not None,
            "value": value,
            "spread": spread,
        }

    values = {
        "trial": results.trial,
        "machine": {**results.machine.about, "L2": results.machine.l2_bytes},
        "records": [plain(record) for record in _all(results)],
        "targets": [dict(zip(("target", "met", "found"), said, strict=True)) for said in _judged(results)],
    }
    _replace(out / "results.json", json.dumps(values, indent=1) + "\n")
    _replace(out / "benchmarks.md", page(results))


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def show(results: Results, records: Iterable[Record], console: Console) -> None:
    """The tables of a section."""
    for title, head, rows in tables(records, results.trial):
        table = Table(title=f"{title} (trial)" if results.trial else title, title_justify="left")
        for name in head:
            table.add_column(name)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def show_verdicts(results: Results, console: Console) -> None:
    """Each target in a line, and what failed."""
    for line in failed(results.records):
        console.print(f"failed: {line}")
    for target, said, found in _judged(results):
        console.print(f"{said}: {target}: {found}")
