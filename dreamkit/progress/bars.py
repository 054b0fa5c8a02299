"""Progress bars on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dreamkit.errors import printable_lines

BAR: Final = 40  # columns, at most
LEAST_BAR: Final = 8
FILE_WIDTH: Final = 160  # of lines that no terminal shows
REPORT_SECONDS: Final = 60.0
SPEED_SECONDS: Final = 600.0  # of which the remaining time is estimated: a step may take a minute


class Bar:
    """A progress bar, shown from its first `move` until `stop` or the end of its `with` block.

        with Bar("scoring") as bar:
            for number, record in enumerate(records, 1):
                score(record)
                bar.move(number, len(records))

    It is one line. In a narrow terminal, the bar itself is left out first, then the elapsed time, then the last facts.

    Args:
        title: text before the bar.
        facts: texts after the bar, the most important ones first: templates of the keyword arguments of `move`, such as
            "{task.fields[images]} images".
        transient: show the bar on a terminal only, remove it at its end, and leave out the elapsed time.
    """

    def __init__(self, title: str, *facts: str, transient: bool = False) -> None:
        console = Console(stderr=True)
        if not console.is_terminal and not console.is_jupyter:
            console.width = FILE_WIDTH
        self._is_still = not console.is_interactive and not console.is_jupyter
        self._reported = -REPORT_SECONDS
        first, bar, number = TextColumn(title, markup=False), BarColumn(BAR), MofNCompleteColumn()
        texts = [TextColumn(fact, markup=False) for fact in facts]
        elapsed: list[ProgressColumn] = [] if transient else [TimeElapsedColumn()]
        remaining = _Remaining()
        self.progress = _Line(
            [first, bar, number, *texts, *elapsed, remaining],
            [first, number, *texts[:1], remaining, *texts[1:], *elapsed],
            bar,
            console,
            speed_estimate_period=SPEED_SECONDS,
            transient=transient,
            disable=transient and not console.is_terminal,
        )
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

    def report(self) -> None:
        """Print the line now where no bar moves, as in a file: at most once a minute, and not at the last step."""
        now = time.monotonic()
        if self._is_still and not self.progress.finished and now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self.progress.console.print(self.progress)

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


class _Remaining(TimeRemainingColumn):
    """The estimated time until the end."""

    def render(self, task: Task) -> Text:
        text = super().render(task)
        return text.append(" left") if text else text


class _Line(Progress):
    """A line of the most important columns that fit into the console, and of a bar in the room that is left.

    Args:
        columns: all columns in their order.
        by_importance: the same ones, without the bar, the most important one first.
        bar: the bar.
        console: the console.
        **options: those of rich's `Progress`.
    """

    def __init__(
        self,
        columns: Sequence[ProgressColumn],
        by_importance: Sequence[ProgressColumn],
        bar: BarColumn,
        console: Console,
        **options: Any,
    ) -> None:
        self._every, self._by_importance, self._bar, self._console = columns, by_importance, bar, console
        super().__init__(*columns, console=console, **options)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return the table of the columns that fit. Texts that are empty take no room."""
        tasks = [*tasks]
        room = self._console.width
        fitting: list[ProgressColumn] = []
        for column in self._by_importance:
            width = max((cell_len(str(column(task))) for task in tasks), default=0)
            if width > room:
                room = 0
                break
            if width:
                fitting.append(column)
                room -= width + 1
        if room >= LEAST_BAR:
            fitting.append(self._bar)
            self._bar.bar_width = min(BAR, room)
        self.columns = tuple(column for column in self._every if column in fitting)
        return super().make_tasks_table(tasks)
