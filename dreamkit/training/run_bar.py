"""The bar of a training run."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dreamkit.progress.bars import Bar


class RunBar(TrainerCallback):
    """Steps, both losses and the time left, on standard error."""

    def __init__(self) -> None:
        self.bar = Bar("training", "text {task.fields[lm]}  image {task.fields[denoising]}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.move(state.global_step, state.max_steps, lm="-", denoising="-")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.move(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = {name: value for name, value in (logs or {}).items() if name in ("lm", "denoising")}
        facts: dict[str, Any] = {
            name: "-" if value is None else f"{value:.4f}" for name, value in shown.items()
        }
        self.bar.move(**facts)

    def stop(self) -> None:
        """Leave the bar as it is; also after an error, when the trainer calls no callback."""
        self.bar.stop()
