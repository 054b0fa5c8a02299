"""The log of a training run, `log.jsonl`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dreamkit.runs.log_entries import LogEntry, read_log
from dreamkit.storage.writing import append_text, write_text

LOGGED = ("lm", "denoising", "loss", "learning_rate", "grad_norm", "skipped", "cut", "data_wait")
TIMES = ("data_wait", "steps_per_second")  # two equal runs differ in them


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
        self.entries = [entry for entry in read_log(self.path) if entry["step"] <= step]
        write_text(self.path, "".join(map(_line, self.entries)))
        self.last = time.monotonic(), step

    def add(
        self, step: int, values: Mapping[str, float | None], more: Mapping[str, float] | None = None
    ) -> None:
        """Add a line of the names in `LOGGED` and of `more`, with the steps per second since the line before."""
        (before, last), now = self.last, time.monotonic()
        self.last = now, step
        entry = {"step": step, **{name: values[name] for name in LOGGED}, **(more or {})}
        entry["steps_per_second"] = (step - last) / (now - before)
        self.entries.append(entry)
        append_text(self.path, _line(entry))
        if self.on_entry is not None:
            self.on_entry(entry)


def _line(entry: LogEntry) -> str:
    """Return a line of the log. JSON has no numbers that are not finite: one is an error here."""
    return json.dumps(entry, allow_nan=False) + "\n"
