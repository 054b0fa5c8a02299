"""The training loop: batches, forward, backward, clip, step, log, save.

`TrainingLoop.train` is the whole algorithm, and the methods below are its parts in the order of their use. A step is
one update of the weights. It has several batches, in several processes, which together are its global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence as Sequences
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor

from dreamkit.build.parameter_groups import parameter_groups
from dreamkit.data.batch import Batch
from dreamkit.data.seeds import stream_seed
from dreamkit.data.sequence import Sequence
from dreamkit.data.skipped import SKIPPED
from dreamkit.data.updates import Updates
from dreamkit.data.workers import original_errors
from dreamkit.distributed import is_main, rank, total, whole, world_size
from dreamkit.errors import OutputError, TrainingError
from dreamkit.model.model import DreamModel, Losses
from dreamkit.parts.precision import full_float64
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.agreement import Agreement
from dreamkit.training.blame import blame
from dreamkit.training.data_wait import DataWait
from dreamkit.training.loss_monitor import LossMonitor
from dreamkit.training.optimizer import clip_gradients, make_optimizer, update
from dreamkit.training.optimizer_state import load_optimizer
from dreamkit.training.point_writer import PointWriter
from dreamkit.training.preempted import mark_preempted
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_points import load_random_state
from dreamkit.training.resume_state import Interval, RunState, read_state
from dreamkit.training.run_bar import RunBar
from dreamkit.training.run_log import LogEntry, RunLog
from dreamkit.training.schedule import set_learning_rates
from dreamkit.training.sharding import begin_pass
from dreamkit.training.skipped_log import Counts, SkippedLog
from dreamkit.training.step_guard import StepGuard

LOG = "log.jsonl"
SPIKES = "spikes.jsonl"
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
        data: fingerprints of the data sets.
        on_log: function that the main process calls with each entry of the log.

    Attributes:
        step: number of finished steps.
        random_state: the generators of random numbers after that step; None before `begin` and within an update of the
            weights, when no state of the run can be saved.
        has_diverged: flag: a loss or gradient is not finite.
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
        data: Sequences[dict[str, str]] = (),
        on_log: Callable[[LogEntry], None] | None = None,
    ) -> None:
        self.model, self.recipe, self.device, self.updates, self.out = model, recipe, device, updates, out
        self.registry, self.data = registry, data
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(parameter_groups(model, recipe))
        self.step = 0
        self.has_begun = self.has_diverged = self.has_failed_to_save = False
        self.pass_shape: tuple[int, int] | None = None  # rows and length of the last forward pass
        self.random_state: RandomState | None = None
        self.agreement = Agreement()
        self.data_wait = DataWait(device)
        self.monitor = LossMonitor(device)
        train = recipe.train
        self.guard = StepGuard(out / SPIKES, train, device)
        # random numbers and documents after each step since the last check
        self.history: dict[int, tuple[RandomState, Counts]] = {}
        self.skipped = SkippedLog(out / SKIPPED, train.max_skipped, updates.global_batch)
        self.points = PointWriter(out, train, registry)
        self.log, self.bar = RunLog(out / LOG, on_log), RunBar()

    def train(self, point: Path | None = None, *, changed_data: bool = False) -> None:
        """Train from the start, or from the resume point `point`, to the last step.

        Raises:
            Interrupted: a signal came.
            DocumentError: a document cannot be read.
            TrainingError: a loss or gradient is not finite, or too many documents are bad.
        """
        train = self.recipe.train
        if point is not None:
            state = self.load(point, changed_data)
        updates = iter(self.updates.loader(self.step))  # uses random numbers
        if point is not None:
            self.set_random_state(point, state.processes)
        self.begin()
        if point is not None and state.preempted:
            self.agreement.call(lambda: mark_preempted(point, False) if is_main() else None)
        self.model.train()  # frozen parts stay in evaluation mode
        while self.step < train.steps:
            batches, counts = self.read(updates)
            for number, batch in enumerate(batches, start=1):
                begin_pass(self.model, is_last=number == len(batches))
                losses = self.backward(batch.to(self.device, non_blocking=True), counts)
                self.monitor.add(self.step + 1, batch.places, losses, counts)
            norm = clip_gradients(self.trained, train.max_grad_norm).to(self.device)
            self.monitor.add_gradient(self.step + 1, norm)
            learning_rates = set_learning_rates(self.optimizer, train, self.step)
            self.random_state = None  # from here to the end of the step, the run cannot be saved
            update(self.optimizer, self.guard.judge(self.step + 1, batches, self.monitor.step_loss(), norm))
            self.optimizer.zero_grad()
            self.end_step()
            if self.step % train.log_every == 0 or self.step == train.steps:
                self.write_log(learning_rates, norm)
            elif self.step % CHECK_EVERY == 0:
                self.check()
            # the last step is saved as the checkpoint of the run
            if train.save_every and self.step % train.save_every == 0 and self.step < train.steps:
                self.check()
                self.save()
        self.check()
        with self.saving():
            self.points.finish()

    def load(self, point: Path, changed_data: bool) -> RunState:
        """Take the state of the run in a resume point, and return it. The model was loaded before."""
        state = read_state(point)
        self.step = state.step
        load_optimizer(point, state.processes, self.model, self.optimizer)
        self.monitor.begin(state.interval.start, state.interval.sums)
        self.guard.begin(self.step, state.norms)
        self.skipped.begin(self.step, state.documents, limit_begins_here=changed_data)
        return state

    def set_random_state(self, point: Path, processes: int) -> None:
        """Set the generators of random numbers to their state in a resume point of this number of processes."""
        if processes == world_size():
            load_random_state(point)
        else:  # the states of other processes
            set_seed(stream_seed(self.recipe.train.seed, self.step, f"process {rank()}") % 2**32)

    def begin(self) -> None:
        """Begin the first step; show the run."""
        self.random_state = RandomState()
        self.history = {self.step: (self.random_state, self.skipped.counts)}
        if is_main():
            self.log.begin(self.step)
            self.bar.begin(self.step, self.recipe.train.steps)
        self.has_begun = True

    def read(self, updates: Iterator[list[Batch]]) -> tuple[list[Batch], Tensor]:
        """Return this process's batches of the next step, and the counts (2,) of all: labels and images to draw."""

        def next_update() -> list[Batch]:
            with original_errors():
                return next(updates)

        with self.data_wait.waiting():  # the processes meet here: for the slowest one's data, too
            batches, skipped, numbers = self.agreement.call(
                next_update,
                remarks=lambda batches: [document for batch in batches for document in batch.skipped],
                numbers=lambda batches: [len(batches), *_counts(batches), float(self.points.is_written)],
            )
        self.skipped.add(self.step + 1, skipped, sum(batch.cut for batch in batches))
        if (error := self.skipped.limit_error(self.step + 1)) is not None:
            self.agreement.stop(error)
        passes, labels, draws, are_written = zip(*numbers, strict=True)
        if all(are_written):
            with self.saving():
                self.points.complete()
        # Under FSDP, all processes run the same forward passes: a part that one skips would wait forever.
        while len(batches) < max(passes):
            batches.append(self.idle)
        counts = torch.tensor([sum(labels), sum(draws)], dtype=batches[0].counts.dtype)
        return batches, counts.to(self.device, non_blocking=True)

    @cached_property
    def idle(self) -> Batch:
        """A batch of no document."""
        return self.updates.collator.collate([])

    def backward(self, batch: Batch, counts: Tensor | None = None) -> Losses:
        """Compute the losses of a batch, and add its gradients; `counts` (2,) are those of the global batch."""
        rows, length = batch.input_ids_BT.shape
        self.pass_shape = rows, length
        precision = self.recipe.train.precision
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with full_float64(precision == "float64"):  # also of layers that the backward pass recomputes
            with half:
                losses: Losses = self.model(batch, counts=counts)
            # FSDP averages gradients over processes, but the losses are parts of a sum.
            (losses.loss * world_size()).backward()
        return losses

    def end_step(self) -> None:
        """Mark the end of a step: weights, optimizer and random numbers are those of a resume point."""
        self.step += 1
        self.monitor.end_step(self.guard.halted)
        self.skipped.end_step()
        self.random_state = RandomState()
        self.history[self.step] = self.random_state, self.skipped.counts
        if is_main():
            self.bar.move(self.step)

    def write_log(self, learning_rates: dict[str, float], norm: Tensor) -> None:
        """Write a line of the log, after a check that all losses in it are finite."""
        self.check()
        losses = self.monitor.read(self.step)
        spikes = {} if self.guard.factor is None else {"spikes": len(self.guard.spikes)}
        values = {
            "learning_rate": learning_rates["learning_rate"],
            "grad_norm": norm.item(),
            "data_wait": self.data_wait.read(),
        }
        counts = self.skipped.totals(self.device)
        if is_main():
            self.bar.show(losses)
            self.log.add(self.step, losses | values | counts, learning_rates | spikes)
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
        halt, spike = self.guard.read()
        not_finite = self.monitor.check()
        if halt is not None:
            self.rewind(min(self.step, halt - 1))
        if spike is not None:
            return self.guard.error(spike)
        if not_finite is not None:
            self.has_diverged = True
            return blame(not_finite, self.updates.samples, self.is_finite)
        self.history = {self.step: self.history[self.step]}
        return None

    def rewind(self, step: int) -> None:
        """Make `step` the last finished one: later steps have changed neither weights, optimizer nor losses."""
        self.guard.rewind(self.step - step)
        self.step = step
        self.random_state, counts = self.history[step]
        self.skipped.rewind(counts)

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
        assert self.random_state is not None, "no update of the weights has begun"
        self.random_state.restore()
        self.optimizer.zero_grad()
        self.monitor.drop_step()
        state = RunState(
            self.step,
            world_size(),
            self.updates.global_batch,
            Interval(self.monitor.start, tuple(self.monitor.sums())),
            self.skipped.state(self.device),
            tuple(self.data),
            preempted,
            self.guard.norms(),
        )
        with self.saving():
            self.points.finish()  # the failure of an earlier point is not that of this one
        with self.saving(may_fail=not is_last):
            self.points.save(state, self.model, self.optimizer, self.random_state, is_last=is_last)

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


def _counts(batches: Sequences[Batch]) -> list[float]:
    """Return the numbers of labels and of images to draw, which are on the host."""
    counts: list[float] = (
        torch.stack([batch.counts for batch in batches]).sum(0, dtype=torch.float64).tolist()
    )
    return counts
