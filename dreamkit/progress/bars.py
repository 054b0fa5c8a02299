"""Progress bars on standard error."""

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
from rich.text import Text

from dreamkit.errors import printable_lines


class Bar:
    """A progress bar, shown from its first `move` until `stop` or the end of its `with` block.

        with Bar("scoring") as bar:
            for number, record in enumerate(records, 1):
                score(record)
                bar.move(number, len(records))

    Args:
        title: text before the bar.
        facts: text after the bar, a rich template of the keyword arguments of `move`: "{task.fields[images]} images".
        transient: show the bar on a terminal only, remove it at its end, and leave out the elapsed time.
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

    def move(self, completed: int | None = None, total: int | None = None, **facts: Any) -> None:
        """Show `completed` of `total` steps, and `facts`; None keeps the value.

        If the bar is not shown, it starts at `completed` or 0, with an elapsed time of 0; this call needs all facts.
        """
        if self.progress.live.is_started:
            self.progress.update(self._task, completed=completed, total=total, **facts)
        else:
            self.progress.reset(self._task, completed=completed or 0, total=total, **facts)
            self.progress.start()

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.progress.console.print(Text(printable_lines(text)), soft_wrap=True)

    def stop(self) -> None:
        """End the bar; remove it from the terminal if it is transient."""
        if self.progress.live.is_started:
            self.progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
