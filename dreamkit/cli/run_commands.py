"""Commands about the folders of runs. They load no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreamkit.cli.shared import echo, path_argument, print_lines

if TYPE_CHECKING:
    from dreamkit.runs.summaries import RunSummary


def list_runs(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=path_argument, help="the folder with runs, at any depth"),
    ] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="print each run as a JSON object on a line")
    ] = False,
) -> None:
    """List runs with their state and last figures.

    Prints a line for each run at and below FOLDER, by default runs: its state, steps, last losses, and the time since
    the last line of its log. Then prints why runs ended early, and what is damaged. A run is running if a process holds
    the lock of its folder; one that hangs is running, too, with an old last line.

    `dreamkit runs` does the same.

    Example: dreamkit runs list experiments --json
    """
    import json

    from dreamkit.errors import DreamkitError, printable
    from dreamkit.runs.summaries import find_runs, summary

    if not folder.is_dir():
        reason = "is a file" if folder.exists() else "does not exist"
        raise DreamkitError(
            f"expected a folder with runs, got {folder}, which {reason}; name the folder above those that "
            "`dreamkit train` wrote with --out"
        )
    problems: list[str] = []
    runs = [summary(run) for run in find_runs(folder, problems)]
    if as_json:
        for run in runs:
            echo(json.dumps(_content(run)))
    elif runs:
        print_lines(
            ("run", "state", "step", "loss", "lm", "denoising", "held-out", "last line"),
            [_row(run) for run in runs],
        )
        for run in runs:
            if run.reason:
                echo(f"{printable(run.folder)}: {run.reason}")
    else:
        echo(
            f"no run in {printable(folder)}; `dreamkit train RECIPE --out {printable(folder / 'NAME')}` writes one"
        )
    problems += [problem for run in runs for problem in run.problems]
    for problem in problems:
        echo(f"damaged: {problem}", err=True)


def diff(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", parser=path_argument, help="folders of two or more runs")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=path_argument, help="the page to write; default: runs-diff.html"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace FILE")] = False,
) -> None:
    """Compare runs: recipes, versions, figures and curves.

    Prints the settings and versions that differ, and the last figures. Writes a page with these, the curves of all runs
    in the same charts, and their drawings side by side. Images are links to files in the folders of the runs.

    Example: dreamkit runs diff runs/a runs/b --out diff.html
    """
    from dreamkit.errors import DreamkitError
    from dreamkit.runs.comparison import figure_rows, open_runs, other_rows, recipe_rows
    from dreamkit.runs.comparison_page import comparison_page
    from dreamkit.storage.writing import write_text

    if len(folders) < 2:
        raise DreamkitError(f"expected at least two runs, got {folders[0]} alone; name another one")
    file = Path("runs-diff.html") if out is None else out
    if file.exists() and not (overwrite and file.is_file()):
        fix = "replace it with --overwrite, or " if file.is_file() else ""
        raise DreamkitError(f"{file} exists; {fix}name another file with --out")
    runs = open_runs(folders)
    names = [run.name for run in runs]
    for title, rows, same in (
        ("setting", recipe_rows(runs), "the recipes are the same"),
        ("version", other_rows(runs), "versions, processes and devices are the same"),
        ("last figure", figure_rows(runs), ""),
    ):
        if rows:
            print_lines((title, *names), [(row.key, *row.values) for row in rows])
        else:
            echo(same)
        echo("")
    write_text(file, comparison_page(runs, file.absolute().parent))
    echo(f"wrote {file}", err=True)


def _row(run: RunSummary) -> tuple[str, ...]:
    """Return the cells of a run."""
    from dreamkit.errors import printable

    state: str = run.state
    age = _age(run)
    if run.is_late:
        state += f", no line for {age}"
    if run.state in ("preempted", "ended early"):
        state += f", resumable from step {run.resume_step}"
    if run.state == "failed":
        state += ", no resume point"
    if run.problems:
        state += ", damaged"
    steps = f"{run.step}/{'?' if run.steps is None else run.steps}"
    losses = (_figure(run.figures.get(name)) for name in ("loss", "lm", "denoising"))
    held_out = _figure(run.held_out.get("loss"))
    return printable(run.folder), state, steps, *losses, held_out, f"{age} ago" if age else "-"


def _age(run: RunSummary) -> str:
    """Return the time since the last line of the log."""
    from datetime import UTC, datetime

    from dreamkit.runs.durations import duration

    return "" if run.last_line is None else duration(datetime.now(UTC) - run.last_line)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _content(run: RunSummary) -> dict[str, object]:
    """Return the JSON object of a run."""
    from dataclasses import asdict

    last_line = None if run.last_line is None else run.last_line.isoformat(timespec="seconds")
    return {
        "run": str(run.folder),
        **asdict(run),
        "last_line": last_line,
        "folder": str(run.folder.absolute()),
    }
