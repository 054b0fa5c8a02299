"""The log of a training run, `log.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from dreamkit.runs.log_entries import LogEntry, read_log
from dreamkit.storage.writing import append_text, write_text

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


def log_line(entry: LogEntry) -> str:
    """Return a line of the log. JSON has no numbers that are not finite: one is an error here."""
    return json.dumps(entry, allow_nan=False) + "\n"
