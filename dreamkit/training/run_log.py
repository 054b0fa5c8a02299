"""The log of a training run, `log.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dreamkit.errors import TrainingError, describe_error, excerpt
from dreamkit.storage.writing import append_text, write_text

LogEntry = Mapping[str, float | None]
# speeds and memory, in which two equal runs differ
TIMES = ("data_wait", "steps_per_second", "tokens_per_second", "images_per_second", "memory")


class RunLog:
    """A log that appends one line per interval to the file `path`, and passes it to `on_log`.

    A resumed run drops the lines of steps that it repeats.
    """

    def __init__(self, path: Path, on_log: Callable[[LogEntry], None] | None = None) -> None:
        self.path = path
        self.on_entry = on_log
        self.entries: list[LogEntry] = []

    def begin(self, step: int) -> None:
        """Keep the lines up to `step`, the last finished one."""
        self.entries = keep_entries(self.path, step)

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a line of these values, after the number of finished steps."""
        entry = {"step": step, **values}
        self.entries.append(entry)
        append_text(self.path, log_line(entry))
        if self.on_entry is not None:
            self.on_entry(entry)


def keep_entries(path: Path, step: int) -> list[LogEntry]:
    """Drop the lines after `step` from a log, which is created if there is none; return the entries of the others."""
    entries: list[LogEntry] = [entry for entry in read_log(path) if entry["step"] <= step]
    write_text(path, "".join(map(log_line, entries)))
    return entries


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the entries of an earlier run, without a last line whose writing was interrupted.

    Raises:
        TrainingError: another line is not an entry.
    """
    return read_entries(path, _entry)


def read_entries(path: Path, parse: Callable[[bytes], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of `parse` for each line of a file, without a last one whose writing was interrupted.

    Raises:
        TrainingError: `parse` raised a ValueError or RecursionError for another line.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(parse(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise TrainingError(
                    f"{path}:{number}: invalid JSON entry: {describe_error(error)}; remove this line"
                ) from error
    return entries


def _entry(line: bytes) -> dict[str, Any]:
    """Return the entry in a line: a section of numbers, with the step.

    Raises:
        ValueError, RecursionError: the line is not an entry.
    """
    entry = json.loads(line.decode())
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        raise ValueError(f"expected a section with the step, got {excerpt(line.decode())}")
    for name, value in entry.items():
        is_finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        if value is not None and not is_finite:
            raise ValueError(f"expected a finite number as {excerpt(name)}, got {excerpt(json.dumps(value))}")
    return entry


def log_line(entry: LogEntry) -> str:
    """Return a line of the log. JSON has no numbers that are not finite: one is an error here."""
    return json.dumps(entry, allow_nan=False) + "\n"
