"""The progress bar of a training run."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerState

from dreamkit.progress.bars import Bar


class RunBar(TrainerCallback):
    """A progress bar on standard error with steps, both losses and the remaining time."""

    def __init__(self) -> None:
        self.bar = Bar("training", "text {task.fields[lm]}  image {task.fields[denoising]}")

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **named: Any) -> None:
        self.bar.move(state.global_step, state.max_steps, lm="-", denoising="-")

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **named: Any) -> None:
        self.bar.move(state.global_step)

    def on_log(self, *_: Any, **named: Any) -> None:
        facts: dict[str, Any] = {
            name: "-" if value is None else f"{value:.4f}"
            for name, value in named["logs"].items()
            if name in ("lm", "denoising")
        }
        self.bar.move(**facts)

    def stop(self) -> None:
        """End the bar. The run calls this, since the trainer calls no callback after an error."""
        self.bar.stop()
