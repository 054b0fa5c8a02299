"""The page and the record of a run, written while it goes on. This module loads no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dreamkit.errors import DreamkitError, describe_error
from dreamkit.runs.record import RunRecord, read_record
from dreamkit.runs.run_content import RunContent
from dreamkit.runs.run_page import Moment, run_page
from dreamkit.runs.run_paths import PAGE
from dreamkit.storage.writing import write_text

LEAST: Final = 3.0  # seconds between two pages
SHARE: Final = 0.01  # of the time, at most, for pages


class PageWriter:
    """The writer of `index.html` in the folder of a run; one that has not begun writes nothing.

    A page is written at the start, at the end and between at most every 3 seconds, and takes at most 1 % of the time. A
    page that cannot be written does not end the run: the first failure is printed.

    Args:
        out: folder of the run.
        show: function that prints a line for the user.
    """

    def __init__(self, out: Path, show: Callable[[str], None]) -> None:
        self.out, self.show = out, show
        self._record: RunRecord | None = None
        self._content = RunContent(out)
        self._next = 0.0  # time before which no page is written
        self._has_failed = False

    def begin(self, record: RunRecord) -> None:
        """Write the record of a start, after the starts before it, and the first page.

        Raises:
            TrainingError: the record of an earlier start is damaged.
            OutputError: the record cannot be written.
        """
        self._record = record.after(read_record(self.out))
        self._record.write(self.out)
        self._write(record.starts[-1]["step"])

    def update(self, step: int) -> None:
        """Write the page after a line of the log, unless the one before is new. `step` is the last finished one."""
        if time.monotonic() >= self._next:
            self._write(step)

    @contextmanager
    def ending(self, step: Callable[[], int]) -> Iterator[None]:
        """Write the last page at the end of the block: of a finished run, or one that an error ended after `step`."""
        try:
            yield
        except BaseException as error:
            self._end(step(), _reason(error))
            raise
        self._end(step(), "")

    def _end(self, step: int, reason: str) -> None:
        if self._record is not None:
            self._record = replace(self._record, ended=reason)
            self._try(lambda record: record.write(self.out))
            self._write(step, is_running=False)

    def _write(self, step: int, *, is_running: bool = True) -> None:
        def write(record: RunRecord) -> None:
            self._content.read()
            moment = Moment(step, datetime.now(UTC), is_running, record.recipe["train"]["log_every"])
            write_text(self.out / PAGE, run_page(record, self._content, moment))

        begin = time.monotonic()
        self._try(write)
        end = time.monotonic()
        self._next = end + max(LEAST, (end - begin) / SHARE)

    def _try(self, write: Callable[[RunRecord], None]) -> None:
        """Call `write` with the record of the run; print the first failure. Nothing here may end a training."""
        if self._record is None:
            return
        try:
            write(self._record)
        except Exception as error:
            if not self._has_failed:
                self.show(f"the page of the run is not up to date: {describe_error(error)}; training goes on")
            self._has_failed = True


def _reason(error: BaseException) -> str:
    """Return the message of an error that ended a run, with the notes about its resume point."""
    is_message = isinstance(error, DreamkitError | KeyboardInterrupt) and str(error)
    return "; ".join([str(error) if is_message else describe_error(error), *getattr(error, "__notes__", ())])
