"""The view of a run while it trains: images of fixed prompts, and losses on held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from dreamkit.data.dataset import Dataset
from dreamkit.distributed import is_main
from dreamkit.model.evaluating import evaluating
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import computing_in
from dreamkit.recipe.sections import Recipe
from dreamkit.runs.run_paths import HELD_OUT
from dreamkit.storage.writing import append_text
from dreamkit.training.agreement import Agreement
from dreamkit.training.drawings import Drawings
from dreamkit.training.failures import with_remedies
from dreamkit.training.held_out_losses import HeldOutLosses
from dreamkit.training.random_state import RandomState
from dreamkit.training.run_bar import RunBar
from dreamkit.training.run_log import keep_entries, log_line
from dreamkit.training.sharding import end_passes
from dreamkit.training.trackers import Trackers


class Watch:
    """Drawings and held-out losses after some steps and after the last one, which leave the training as it is.

    Args:
        model: the model, sharded if several processes train it.
        recipe: the recipe of the run.
        device: the device of this process.
        out: folder of the run.
        held_out: the data sets of `recipe.held_out`.
        agreement: the meeting of the processes.
        bar: the progress bar of the run.
        trackers: the trackers of the run.
        weights: context that puts other weights, such as their moving averages, in the place of the trained ones.
    """

    def __init__(
        self,
        model: DreamModel,
        recipe: Recipe,
        device: torch.device,
        out: Path,
        held_out: Sequence[Dataset],
        agreement: Agreement,
        bar: RunBar,
        trackers: Trackers,
        weights: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model, self.agreement, self.bar, self.weights = model, agreement, bar, weights
        self.trackers = trackers
        self.train, self.path = recipe.train, out / HELD_OUT
        computing = partial(computing_in, recipe.train.precision, device.type)
        self.drawings = Drawings(model, recipe, out, agreement, computing, bar.print)
        self.losses: HeldOutLosses | None = None
        if held_out:
            self.losses = HeldOutLosses(model, recipe, device, held_out, agreement, computing)
        self.noted: set[str] = set()

    def begin(self, step: int) -> list[str]:
        """Continue after `step`: drop the files of later steps; return what was due at `step` and is missing.

        Every process must call this method.
        """
        if step == 0:  # a new folder
            return []
        return self.agreement.call(lambda: self._begin(step) if is_main() else [], remarks=list).remarks

    def _begin(self, step: int) -> list[str]:
        self.drawings.begin(step)
        has_losses = False
        if self.path.is_file():
            has_losses = any(entry["step"] == step for entry in keep_entries(self.path, step))
        has = {"drawing": self.drawings.has(step), "evaluating": has_losses}
        return [work for work in self.due(step) if not has[work]]

    def due(self, step: int) -> list[str]:
        """Return what is due after `step`."""
        every = {"drawing": self.train.draw_every, "evaluating": self.train.eval_every if self.losses else 0}
        is_last = step == self.train.steps
        return [work for work, steps in every.items() if step and steps and (step % steps == 0 or is_last)]

    def run(self, step: int, works: Sequence[str]) -> None:
        """Draw or evaluate, as `works` names it, after `step`. Every process must call this method.

        Raises:
            Interrupted: a signal came, in any process.
            DocumentError: a held-out document cannot be read.
            OutputError, TrainingError: the main process, or another one, cannot write a file.
        """
        actions = {"drawing": self._draw, "evaluating": self._evaluate}
        for work in works:
            if is_main():
                self.bar.show_work(work)
            with with_remedies(partial(_memory_remedy, work)), self._aside():
                actions[work](step)
            if is_main():
                self.bar.show_work("")

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Leave mode, random numbers and weights of the training as they are after the block."""
        state = RandomState()
        try:
            with self.weights(), evaluating(self.model), torch.no_grad():
                yield
        finally:
            end_passes(self.model)
            state.restore()

    def _draw(self, step: int) -> None:
        """Draw the prompts, and pass the images to the trackers."""
        self.drawings.draw(step)
        if is_main():
            self.trackers.add_images(step, lambda: self.drawings.images(step))

    def _evaluate(self, step: int) -> None:
        """Append the held-out losses to their list."""
        assert self.losses is not None, "evaluations are due only with held-out data"
        losses = self.losses.compute()
        self.agreement.call(
            lambda: append_text(self.path, log_line({"step": step, **losses})) if is_main() else None
        )
        self.trackers.add(step, losses, group="held_out")
        for note in self.losses.notes:
            if is_main() and note not in self.noted:
                self.bar.print(note)
                self.noted.add(note)


def _memory_remedy(work: str) -> str:
    """Return the rest of an error about too little memory."""
    if work == "drawing":
        return " in drawing images; set train.draw_every: 0 and train.prompts: []"
    return " in evaluating held-out documents; lower train.micro_batch or train.max_length"
