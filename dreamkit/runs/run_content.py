"""The content of the files of a run, read as they grow. This module loads no torch."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from dreamkit.data.skipped import SKIPPED
from dreamkit.pages.thinning import ThinnedLine
from dreamkit.runs.log_entries import LogEntry, NewEntries, last_lines, log_entry
from dreamkit.runs.run_paths import HELD_OUT, LOG, SPIKES

MOST_KEYS: Final = 100  # of a file whose curves are kept
MOST_LISTED: Final = 20  # skipped documents, or spikes
LATE: Final = 120.0  # seconds
RECENT: Final = 20  # lines of the log from which the speed is computed


class Curves:
    """A thinned line for each key of a file of entries, and the last value of each.

    Reading takes time in proportion to what was appended since; memory does not depend on the length of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = NewEntries(path, log_entry)
        self.lines: dict[str, ThinnedLine] = {}
        self.recent: deque[LogEntry] = deque(maxlen=RECENT)
        self.last: dict[str, float] = {}

    def read(self) -> None:
        """Read the entries that were appended since the last call.

        Raises:
            TrainingError: an entry is damaged.
        """
        for entry in self._file.read():
            self.recent.append(entry)
            step = entry["step"]
            for key, value in entry.items():
                if value is None or key == "step":
                    continue
                if key not in self.lines:
                    if len(self.lines) == MOST_KEYS:
                        continue
                    self.lines[key] = ThinnedLine()
                self.lines[key].add(step, value)
                self.last[key] = value

    @property
    def step(self) -> int:
        """Step of the last entry; 0 before the first one."""
        return int(self.recent[-1]["step"] or 0) if self.recent else 0


class RunContent:
    """The curves of a run, and the last documents and steps that it skipped.

    Attributes:
        log: curves of `log.jsonl`.
        held_out: curves of `held_out.jsonl`.
        skipped: the last skipped documents: their lines, or None for a damaged one.
        spikes: the last spikes, in the same form.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.held_out = Curves(folder / LOG), Curves(folder / HELD_OUT)
        self.skipped: list[dict[str, Any] | None] = []
        self.spikes: list[dict[str, Any] | None] = []

    def read(self) -> None:
        """Read what was written since the last call.

        Raises:
            TrainingError: an entry of the log or of the held-out losses is damaged, or a file cannot be read.
        """
        self.log.read()
        self.held_out.read()
        self.skipped, self.spikes = (_listed(self.folder / name) for name in (SKIPPED, SPIKES))


def late_after(entries: Collection[LogEntry]) -> float:
    """Return the seconds after which a run without a new line is late, by the last lines of its log."""
    steps = [int(entry["step"] or 0) for entry in entries]
    between = max((after - before for before, after in pairwise(steps)), default=0)
    return LATE + 3 * between * (seconds_per_step(entries) or 0)


def seconds_per_step(entries: Collection[LogEntry]) -> float | None:
    """Return the mean time of a step over some lines of a log; None if there are none with a speed."""
    speeds = [
        speed for entry in entries if (speed := entry.get("steps_per_second")) is not None and speed > 0
    ]
    return sum(1 / speed for speed in speeds) / len(speeds) if speeds else None


def _listed(path: Path) -> list[dict[str, Any] | None]:
    """Return the last lines of a file; None for a damaged one."""
    return [_object(line) for line in last_lines(path)[-MOST_LISTED:]]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
