"""The progress of a run: what a resume point has besides weights and optimizer state.

This is the number of finished steps, and random numbers, losses, gradient norms and documents after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.data.batch import Batch
from dreamkit.data.skipped import SKIPPED
from dreamkit.distributed import world_size
from dreamkit.model.losses import Losses
from dreamkit.recipe.sections import TrainSection
from dreamkit.runs.run_paths import SPIKES
from dreamkit.training.loss_monitor import LossMonitor, NotFinite
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_state import Interval, RunState
from dreamkit.training.skipped_log import Counts, SkippedLog
from dreamkit.training.step_guard import StepGuard


class RunProgress:
    """The finished steps of a run.

    Args:
        out: folder of the run.
        train: its settings.
        device: the device of this process.
        global_batch: number of documents of an update.
        data: fingerprints of the data sets.

    Attributes:
        step: number of finished steps.
        random_state: the generators of random numbers after that step; None before `begin` and within an update of the
            weights, when no state of the run can be saved.
        has_diverged: flag: a loss or gradient is not finite.
    """

    def __init__(
        self,
        out: Path,
        train: TrainSection,
        device: torch.device,
        global_batch: int,
        data: Sequence[dict[str, str]],
    ) -> None:
        self.step = 0
        self.random_state: RandomState | None = None
        self.has_diverged = False
        self.monitor = LossMonitor(device)
        self.guard = StepGuard(out / SPIKES, train, device)
        self.skipped = SkippedLog(out / SKIPPED, train.max_skipped, global_batch)
        self._device, self._global_batch, self._data = device, global_batch, data
        # random numbers and documents after each step since the last call of `problem`
        self._history: dict[int, tuple[RandomState, Counts]] = {}

    def load(self, state: RunState, *, changed_data: bool) -> None:
        """Continue after the step of a resume point."""
        self.step = state.step
        self.monitor.begin(state.interval.start, state.interval.sums)
        self.guard.begin(self.step, state.norms)
        self.skipped.begin(self.step, state.documents, limit_begins_here=changed_data)

    def begin(self) -> None:
        """Begin the first step of this process."""
        self.random_state = RandomState()
        self._history = {self.step: (self.random_state, self.skipped.counts)}

    @property
    def has_begun(self) -> bool:
        """True after `begin`."""
        return bool(self._history)

    def add(self, batch: Batch, losses: Losses, counts: Tensor) -> None:
        """Add a batch of the unfinished step; `counts` (2,) are those of the global batch."""
        self.monitor.add(self.step + 1, batch.places, losses, counts)

    def judge(self, batches: Sequence[Batch], norm: Tensor) -> Tensor:
        """Return 1 () if the step must change nothing, else 0; see `StepGuard.judge`.

        The `batches` of the step were added, and `norm` () is that of its gradients. From here to the end of the step,
        the run cannot be saved. Every process must call this method.
        """
        self.random_state = None
        self.monitor.add_gradient(self.step + 1, norm)
        return self.guard.judge(self.step + 1, batches, self.monitor.step_loss(), norm)

    def end_step(self) -> None:
        """Mark the end of a step: weights, optimizer and random numbers are those of a resume point."""
        self.step += 1
        self.monitor.end_step(self.guard.halted)
        self.skipped.end_step()
        self.random_state = RandomState()
        self._history[self.step] = self.random_state, self.skipped.counts

    def problem(self, blame: Callable[[NotFinite], str]) -> str | None:
        """Return the error of a step since the last call that ends the run, or None. Every process must call this.

        `blame` returns that of a loss or gradient that is not finite. The last finished step is then the one before.
        """
        halt, spike = self.guard.read()
        not_finite = self.monitor.check()
        if halt is not None:
            self._rewind(min(self.step, halt - 1))
        if spike is not None:
            return self.guard.error(spike)
        if not_finite is not None:
            self.has_diverged = True
            return blame(not_finite)
        self._history = {self.step: self._history[self.step]}
        return None

    def _rewind(self, step: int) -> None:
        """Make `step` the last finished one: later steps have changed neither weights, optimizer nor losses."""
        self.guard.rewind(self.step - step)
        self.step = step
        self.random_state, counts = self._history[step]
        self.skipped.rewind(counts)

    def state(self, *, preempted: bool) -> RunState:
        """Return the state for a resume point, with this flag; drop the unfinished step.

        Every process must call this method, after `problem`.
        """
        assert self.random_state is not None, "no update of the weights has begun"
        self.random_state.restore()
        self.monitor.drop_step()
        return RunState(
            self.step,
            world_size(),
            self._global_batch,
            Interval(self.monitor.start, tuple(self.monitor.sums())),
            self.skipped.state(self._device),
            tuple(self._data),
            preempted,
            self.guard.norms(),
        )

    def notes(self) -> list[str]:
        """Return lines about documents and steps that were skipped. Every process must call this method."""
        return [*self.skipped.notes(self._device), *self.guard.notes()]
