"""The live line of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dreamkit.plan.sizes import format_bytes
from dreamkit.progress.bars import Bar

POWERS: Final = ("", "k", "M", "G")  # of 1000


class RunBar:
    """A line on standard error with steps, losses and remaining time, then speeds, the wait for data and memory.

    The figures are those of the last line of the log. Where no line can move, as in a file, one is printed a minute.
    """

    def __init__(self) -> None:
        names = ("losses", "tokens", "images", "wait", "memory", "work")
        self.bar = Bar("training", *(f"{{task.fields[{name}]}}" for name in names))

    def begin(self, step: int, steps: int) -> None:
        """Show the line of a run that has finished `step` of `steps` steps."""
        self.bar.move(step, steps, losses="text - image -", tokens="", images="", wait="", memory="", work="")

    def move(self, step: int) -> None:
        """Show the number of finished steps."""
        self.bar.move(step)

    def show(self, values: Mapping[str, float | None]) -> None:
        """Show the figures of a line of the log."""
        self.bar.move(
            losses=f"text {_loss(values['lm'])} image {_loss(values['denoising'])}",
            tokens=f"{_speed(values['tokens_per_second'])}tok/s",
            images=f"{_speed(values['images_per_second'])}img/s",
            wait=f"wait {values['data_wait']:.0%}",
            memory=format_bytes(values["memory"] or 0),
        )
        self.bar.report()

    def show_work(self, work: str) -> None:
        """Show what the run does between two steps, such as "drawing"; "" for nothing."""
        self.bar.move(work=work)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.print(text)

    def stop(self) -> None:
        """End the line."""
        self.bar.stop()


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def _speed(number: float | None) -> str:
    """Return a number with three digits, ready for a unit: `12.3 k`."""
    assert number is not None, "speeds are numbers"
    power = 0
    while number >= 999.5 and power < len(POWERS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {POWERS[power]}"
