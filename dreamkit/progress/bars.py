"""Bars of progress on standard error."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bar:
    """A bar that is shown from its first `move` until `stop`, or until the end of its `with` block.

        with Bar("scoring") as bar:
            for number, record in enumerate(records, 1):
                score(record)
                bar.move(number, len(records))

    `title` stands before it. `facts` stand after it: a template for what `move` is given by name, such as
    "{task.fields[images]} images". A `transient` bar disappears at its end, is shown on a terminal only, and leaves out
    the time elapsed.
    """

    def __init__(self, title: str, facts: str = "", *, transient: bool = False) -> None:
        columns: list[ProgressColumn] = [TextColumn(title), BarColumn(), MofNCompleteColumn()]
        if facts:
            columns.append(TextColumn(facts))
        if not transient:
            columns.append(TimeElapsedColumn())
        columns.append(TimeRemainingColumn())
        console = Console(stderr=True)
        hidden = transient and not console.is_terminal
        self.progress = Progress(*columns, console=console, transient=transient, disable=hidden)
        self._task = self.progress.add_task("", total=None)

    def move(self, done: int | None = None, of: int | None = None, **facts: Any) -> None:
        """Show that `done` of all are done, and `facts`; an argument that is None stays as it was.

        A bar that is not shown yet, or not any more, begins at `done` or 0, and its time at zero. All facts are needed
        then.
        """
        if self.progress.live.is_started:
            self.progress.update(self._task, completed=done, total=of, **facts)
        else:
            self.progress.reset(self._task, completed=done or 0, total=of, **facts)
            self.progress.start()

    def stop(self) -> None:
        """Leave the bar as it is, or remove it if it is transient."""
        if self.progress.live.is_started:
            self.progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
