"""The training loop: batches, forward, backward, clip, step, log, save.

`TrainingLoop.train` is the whole algorithm, and the methods below are its parts in the order of their use. A step is
one update of the weights. It has several batches, in several processes, which together are its global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence as Sequences
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.build.parameter_groups import parameter_groups
from dreamkit.data.batch import Batch
from dreamkit.data.dataset import Dataset
from dreamkit.data.sequence import Sequence
from dreamkit.data.updates import Updates
from dreamkit.distributed import is_main, total, whole, world_size
from dreamkit.errors import OutputError, TrainingError
from dreamkit.model.losses import Losses
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import full_float64, half_precision
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.runs.log_entries import LogEntry
from dreamkit.runs.page_writer import PageWriter
from dreamkit.runs.run_paths import LOG
from dreamkit.training.agreement import Agreement
from dreamkit.training.blame import blame
from dreamkit.training.ema import averaged
from dreamkit.training.figures import Figures
from dreamkit.training.new_record import new_record
from dreamkit.training.optimizer import clip_gradients, make_optimizer, update
from dreamkit.training.optimizer_state import load_optimizer
from dreamkit.training.point_writer import PointWriter
from dreamkit.training.preempted import mark_preempted
from dreamkit.training.resume_points import load_random_state
from dreamkit.training.resume_state import read_state
from dreamkit.training.run_bar import RunBar
from dreamkit.training.run_log import RunLog
from dreamkit.training.run_progress import RunProgress
from dreamkit.training.schedule import set_learning_rates
from dreamkit.training.sharding import begin_pass
from dreamkit.training.step_reader import StepReader
from dreamkit.training.trackers import Trackers
from dreamkit.training.watching import Watch

CHECK_EVERY = 100  # steps, at most


class TrainingLoop:
    """The training of a model by a recipe, from the last finished step to the last one.

    Gradients are those of the global batch: they do not depend on how it is divided among processes and batches.

    Args:
        model: the model, on `device`, with its trainable parts set; sharded if several processes train it.
        recipe: the recipe of the run.
        device: the device of this process.
        updates: the batches of this process.
        out: folder of the run.
        registry: the components that checkpoints name.
        held_out: the data sets of `recipe.held_out`.
        data: fingerprints of the data sets.
        on_log: function that the main process calls with each entry of the log.

    Attributes:
        progress: the finished steps.
        pass_shape: rows and length of the last forward pass; None before the first one.
    """

    def __init__(
        self,
        model: DreamModel,
        recipe: Recipe,
        device: torch.device,
        updates: Updates,
        out: Path,
        *,
        registry: Registry | None = None,
        held_out: Sequences[Dataset] = (),
        data: Sequences[dict[str, str]] = (),
        on_log: Callable[[LogEntry], None] | None = None,
    ) -> None:
        self.model, self.recipe, self.device, self.updates, self.out = model, recipe, device, updates, out
        self.registry = registry
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(parameter_groups(model, recipe), recipe.train)
        self.progress = RunProgress(out, recipe.train, device, updates.global_batch, data)
        self.agreement = Agreement()
        self.reader = StepReader(updates, device, self.agreement, self.progress.skipped)
        self.points = PointWriter(out, recipe.train, registry)
        self.figures = Figures(model, device)
        self.log, self.bar = RunLog(out / LOG, on_log), RunBar()
        self.trackers = Trackers(recipe, out, self.bar.print)
        self.watch = Watch(
            model,
            recipe,
            device,
            out,
            held_out,
            self.agreement,
            self.bar,
            self.trackers,
            weights=lambda: averaged(model, self.optimizer),
        )
        self.page = PageWriter(out, self.bar.print)
        self.pass_shape: tuple[int, int] | None = None
        self.has_failed_to_save = False

    def train(self, point: Path | None = None, *, changed_data: bool = False) -> None:
        """Train from the start, or from the resume point `point`, to the last step.

        Raises:
            Interrupted: a signal came.
            DocumentError: a document cannot be read.
            TrainingError: a loss or gradient is not finite, a gradient is a spike, or too many documents are bad.
        """
        train, progress = self.recipe.train, self.progress
        updates = self.begin(point, changed_data)
        self.model.train()  # frozen parts stay in evaluation mode
        while progress.step < train.steps:
            batches, counts = self.read(updates)
            for number, batch in enumerate(batches, start=1):
                begin_pass(self.model, is_last=number == len(batches))
                losses = self.backward(batch.to(self.device, non_blocking=True), counts)
                progress.add(batch, losses, counts)
            is_logged = (progress.step + 1) % train.log_every == 0 or progress.step + 1 == train.steps
            if is_logged:
                self.figures.add_gradients()  # before they are clipped
            norm = clip_gradients(self.trained, train.max_grad_norm).to(self.device)
            learning_rates = set_learning_rates(self.optimizer, train, progress.step)
            update(self.optimizer, progress.judge(batches, norm), progress.step)
            self.optimizer.zero_grad()
            self.end_step()
            if is_logged:
                self.write_log(learning_rates, norm)
            elif progress.step % CHECK_EVERY == 0:
                self.check()
            if works := self.watch.due(progress.step):
                self.check()
                self.watch.run(progress.step, works)
            # the last step is saved as the checkpoint of the run
            if train.save_every and progress.step % train.save_every == 0 and progress.step < train.steps:
                self.check()
                self.save()
        self.check()
        with self.saving():
            self.points.finish()

    def begin(self, point: Path | None, changed_data: bool) -> Iterator[list[Batch]]:
        """Begin at the start, or after the step of a resume point; return the updates of this process.

        The model was loaded before.
        """
        if point is not None:
            state = read_state(point)
            load_optimizer(point, state.processes, self.model, self.optimizer)
            self.progress.load(state, changed_data=changed_data)
        updates = iter(self.updates.loader(self.progress.step))  # uses random numbers
        if point is not None:
            load_random_state(point, state, self.recipe.train.seed)
        self.progress.begin()
        step = self.progress.step
        if is_main():
            self.log.begin(step)
        missing = self.watch.begin(step)
        if is_main():
            self.trackers.begin(step)
            # it reads the files of the run, which have no later steps now
            self.page.begin(
                new_record(
                    self.recipe,
                    self.registry,
                    self.device,
                    global_batch=self.updates.global_batch,
                    step=step,
                )
            )
            self.bar.begin(step, self.recipe.train.steps)
        if point is not None and state.preempted:
            self.agreement.call(lambda: mark_preempted(point, False) if is_main() else None)
        self.watch.run(step, missing)
        self.figures.begin(step)
        return updates

    def read(self, updates: Iterator[list[Batch]]) -> tuple[list[Batch], Tensor]:
        """Return this process's batches of the next step, and the counts (2,) of all: labels and images to draw."""
        step = self.reader.read(updates, self.progress.step + 1, is_written=self.points.is_written)
        if step.is_written:
            with self.saving():
                self.points.complete()
        self.figures.add(step.batches)
        return step.batches, step.counts.to(self.device, non_blocking=True)

    def backward(self, batch: Batch, counts: Tensor | None = None) -> Losses:
        """Compute the losses of a batch, and add its gradients; `counts` (2,) are those of the global batch."""
        rows, length = batch.input_ids_BT.shape
        self.pass_shape = rows, length
        precision = self.recipe.train.precision
        with full_float64(precision == "float64"):  # also of layers that the backward pass recomputes
            with half_precision(precision, self.device.type):
                losses: Losses = self.model(batch, counts=counts)
            # FSDP averages gradients over processes, but the losses are parts of a sum.
            (losses.loss * world_size()).backward()
        return losses

    def end_step(self) -> None:
        """Mark the end of a step."""
        self.progress.end_step()
        if is_main():
            self.bar.move(self.progress.step)

    def write_log(self, learning_rates: dict[str, float], norm: Tensor) -> None:
        """Write a line of the log, after a check that all losses in it are finite."""
        self.check()
        progress = self.progress
        losses = progress.monitor.read(progress.step)
        counts = progress.skipped.totals(self.device)
        spikes = {} if progress.guard.factor is None else {"spikes": len(progress.guard.spikes)}
        values = {
            **losses,
            **learning_rates,
            "grad_norm": norm.item(),
            "skipped": counts["skipped"],
            "cut": counts["cut"],
            **spikes,
            "data_wait": self.reader.data_wait.read(),
            **self.figures.read(progress.step),
        }
        if is_main():
            self.bar.show(values)
            self.trackers.add(progress.step, values)
            self.log.add(progress.step, values)
            self.page.update(progress.step)
            self.model.train()  # `on_log` may have changed the mode

    def check(self) -> None:
        """Check every loss and gradient since the last call. Every process must call this method.

        Raises:
            TrainingError: one is not finite, or a spike. The message, in every process, names step and documents. The
                last finished step is the one before.
        """
        if (problem := self.problem()) is not None:
            self.agreement.is_stopping = True
            raise TrainingError(problem)

    def problem(self) -> str | None:
        """Return the message of the error that `check` raises, or None."""
        return self.progress.problem(
            lambda not_finite: blame(not_finite, self.updates.samples, self.is_finite)
        )

    def is_finite(self, sequence: Sequence) -> bool:
        """Return True if a document alone has a finite loss and gradient; overwrites the gradients of the model."""
        self.optimizer.zero_grad()
        losses = self.backward(self.updates.collator.collate([sequence]).to(self.device))
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None]))
        return bool(total(losses.loss.detach()).isfinite()) and bool(norm.isfinite())

    def save(self, *, preempted: bool = False, is_last: bool = False) -> None:
        """Write a resume point of the last finished step; drop what an unfinished one has computed.

        `preempted` is the flag of its state. A point that `is_last` is complete at the return.
        """
        state, random_state = self.progress.state(preempted=preempted), self.progress.random_state
        assert random_state is not None, "no update of the weights has begun"
        self.optimizer.zero_grad()
        with self.saving():
            self.points.finish()  # the failure of an earlier point is not that of this one
        with self.saving(may_fail=not is_last):
            self.points.save(state, self.model, self.optimizer, random_state, is_last=is_last)

    @contextmanager
    def saving(self, *, may_fail: bool = True) -> Iterator[None]:
        """Stop training if a resume point cannot be written, which all processes learn in the same block.

        If it `may_fail` and `on_save_error` is continue, print a line about the first one, and go on.

        Raises:
            OutputError: it cannot.
        """
        try:
            yield
        except OutputError as error:
            if not may_fail or self.recipe.train.on_save_error == "stop":
                self.agreement.stop(error)
            if is_main() and not self.has_failed_to_save:
                self.bar.print(f"{error}; training goes on, and tries again in train.save_every steps")
            self.has_failed_to_save = True
