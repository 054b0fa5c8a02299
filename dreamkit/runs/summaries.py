"""The runs below a folder, each with its state and last figures. This module loads no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import DreamkitError, describe_error
from dreamkit.runs.log_entries import LogEntry, last_lines, log_entry
from dreamkit.runs.record import RunRecord, read_record
from dreamkit.runs.run_content import RECENT, late_after
from dreamkit.runs.run_paths import (
    CHECKPOINT,
    HELD_OUT,
    LOG,
    RECORD,
    STATE,
    STATE_FILE,
    resume_points,
    step_of,
)
from dreamkit.storage.json_files import read_json
from dreamkit.storage.locks import is_locked
from dreamkit.storage.paths import shown_path

State = Literal["running", "finished", "preempted", "ended early", "failed"]


@dataclass(frozen=True)
class RunSummary:
    """The state of a run and its last figures.

    Attributes:
        folder: its folder.
        state: `running` if a process holds the lock of the folder; `preempted`, by a cluster, and `ended early` if it
            can be resumed; `failed` if it left no resume point.
        step: step of the last line of its log; that of the resume point if there is none.
        steps: number of steps of the whole run; None if nothing names it.
        resume_step: step of the last resume point; None if there is none.
        figures: last value of each key of the log.
        held_out: last value of each key of the held-out losses.
        last_line: time of the last line of the log; None if there is none.
        is_late: flag: the run is running, and its next line is late.
        reason: why it ended early, if it could write that.
        problems: a line for each file that is damaged.
    """

    folder: Path
    state: State
    step: int
    steps: int | None
    resume_step: int | None
    figures: dict[str, float]
    held_out: dict[str, float]
    last_line: datetime | None
    is_late: bool = False
    reason: str = ""
    problems: list[str] = field(default_factory=list)


def find_runs(folder: Path, problems: list[str]) -> Iterator[Path]:
    """Yield the folders of runs at and below a folder, sorted; add a line to `problems` for each that cannot be read.

    Links are followed, but no folder is visited twice. Folders inside a run, and hidden ones, are not.
    """
    seen: set[str] = set()

    def visit(place: Path) -> Iterator[Path]:
        real = os.path.realpath(place)
        if real in seen:
            return
        seen.add(real)
        try:
            inside = sorted(entry.name for entry in os.scandir(place) if entry.is_dir())
            is_run = any((place / name).exists() for name in (RECORD, LOG)) or bool(resume_points(place))
        except OSError as error:
            problems.append(f"{shown_path(place)}: {error.strerror}")
            return
        if is_run:
            yield place
            return
        for name in inside:
            if not name.startswith("."):
                yield from visit(place / name)

    yield from visit(folder)


def summary(folder: Path, now: datetime | None = None) -> RunSummary:
    """Return the summary of the run in a folder. What is damaged is named in it."""
    problems: list[str] = []
    record = _tried(lambda: read_record(folder), problems)
    entries = _entries(folder / LOG, problems)
    held_out = _entries(folder / HELD_OUT, problems)
    point = next(reversed(resume_points(folder)), None)
    resume_step = None if point is None else step_of(point)
    last_line = _time_of(folder / LOG) if entries else None
    age = timedelta() if last_line is None else (now or datetime.now(UTC)) - last_line
    is_running = is_locked(folder)
    steps = _steps(folder, record, point, problems)
    state: State
    if is_running:
        state = "running"
    elif _is_finished(folder, steps, problems):
        state = "finished"
    elif point is None:
        state = "failed"
    else:
        state = "preempted" if _is_preempted(point, problems) else "ended early"
    return RunSummary(
        folder,
        state,
        int(entries[-1]["step"] or 0) if entries else resume_step or 0,
        steps,
        resume_step,
        _last(entries),
        _last(held_out),
        last_line,
        is_running and age.total_seconds() > late_after(entries[-RECENT:]),
        "" if record is None or state in ("running", "finished") else record.ended,
        problems,
    )


def stored_recipe(folder: Path) -> dict[str, Any] | None:
    """Return the resolved recipe of the run in a folder: that of its record, or of an earlier release's checkpoint.

    Raises:
        DreamkitError: the file with it is damaged.
    """
    if (record := read_record(folder)) is not None:
        return record.recipe
    for place in (*reversed(resume_points(folder)), folder / CHECKPOINT):
        if (place / Manifest.FILE).is_file():
            return Manifest.read(place, verify=False).recipe
    return None


def _tried(read: Any, problems: list[str]) -> Any:
    """Return the result of `read`; None after an error, which is added to `problems`."""
    try:
        return read()
    except DreamkitError as error:
        problems.append(str(error))
        return None


def _entries(path: Path, problems: list[str]) -> list[LogEntry]:
    """Return the last entries of a file, without damaged ones."""
    entries: list[LogEntry] = []
    damaged = 0
    for line in _tried(lambda: last_lines(path), problems) or ():
        try:
            entries.append(log_entry(line))
        except (ValueError, RecursionError) as error:
            damaged += 1
            if damaged == 1:
                problems.append(
                    f"{shown_path(path)}: invalid JSON entry: {describe_error(error)}; remove its line"
                )
    return entries


def _last(entries: list[LogEntry]) -> dict[str, float]:
    """Return the last value of each key."""
    return {
        key: value for entry in entries for key, value in entry.items() if value is not None and key != "step"
    }


def _time_of(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None


def _steps(folder: Path, record: RunRecord | None, point: Path | None, problems: list[str]) -> int | None:
    """Return the number of steps of a whole run; of an earlier release's, that in its resume point or checkpoint."""
    if record is not None:
        return record.steps
    return _manifest_steps(folder / CHECKPOINT if point is None else point, problems)


def _is_finished(folder: Path, steps: int | None, problems: list[str]) -> bool:
    """Return True if the checkpoint of a run has all of its steps: a run may be lengthened."""
    if not (folder / CHECKPOINT / Manifest.FILE).is_file():
        return False
    trained = _manifest_steps(folder / CHECKPOINT, problems)
    return trained is None or steps is None or trained >= steps


def _manifest_steps(checkpoint: Path, problems: list[str]) -> int | None:
    if not (checkpoint / Manifest.FILE).is_file():
        return None
    manifest = _tried(lambda: Manifest.read(checkpoint, verify=False), problems)
    train = None if manifest is None else manifest.recipe.get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    return steps if isinstance(steps, int) else None


def _is_preempted(point: Path, problems: list[str]) -> bool:
    file = point / STATE / STATE_FILE
    if not file.is_file():  # of an earlier release
        return False
    state = _tried(lambda: read_json(file), problems)
    return state is not None and state.get("preempted") is True
