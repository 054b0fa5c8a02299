"""The progress bar of a training run."""

from __future__ import annotations

from collections.abc import Mapping

from dreamkit.progress.bars import Bar


class RunBar:
    """A progress bar on standard error with steps, both losses and the remaining time."""

    def __init__(self) -> None:
        self.bar = Bar(
            "training", "text {task.fields[lm]}  image {task.fields[denoising]}{task.fields[work]}"
        )

    def begin(self, step: int, steps: int) -> None:
        """Show the bar of a run that has finished `step` of `steps` steps."""
        self.bar.move(step, steps, lm="-", denoising="-", work="")

    def move(self, step: int) -> None:
        """Show the number of finished steps."""
        self.bar.move(step)

    def show(self, losses: Mapping[str, float | None]) -> None:
        """Show both losses of a line of the log."""
        self.bar.move(lm=_shown(losses["lm"]), denoising=_shown(losses["denoising"]))

    def show_work(self, work: str) -> None:
        """Show what the run does between two steps, such as "drawing"; "" for nothing."""
        self.bar.move(work=work and f"  {work}")

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.print(text)

    def stop(self) -> None:
        """End the bar."""
        self.bar.stop()


def _shown(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"
