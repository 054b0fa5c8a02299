"""The resume points of a trainer: checkpoints between two steps from which a run continues as if it had not stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals

from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.distributed import is_main, total, world_size
from dreamkit.errors import CheckpointError
from dreamkit.model.model import DreamModel
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import remove_folder
from dreamkit.storage.tensor_files import read_pickle
from dreamkit.storage.writing import writing
from dreamkit.training.loss_monitor import LossMonitor
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_state import (
    COUNTS,
    DATA,
    INTERVAL,
    LIMIT,
    PROCESSES,
    STATE,
    read_interval,
    state_errors,
)
from dreamkit.training.skipped_log import Counts, LimitStart, SkippedLog

RESUME_POINTS = "checkpoints"  # folder of the folders `step-N`
MAX_RESUME_POINTS = 2


class ResumableTrainer(Trainer):
    """A trainer of a `DreamModel` that writes and reads resume points.

    A resume point has the losses since the last line of the log, too.
    """

    model: DreamModel
    optimizer: Any  # accelerate's wrapper of torch's
    lr_scheduler: Any

    def __init__(
        self,
        model: DreamModel,
        arguments: TrainingArguments,
        callbacks: Sequence[TrainerCallback],
        registry: Registry | None,
        fingerprints: Sequence[Mapping[str, str]],
        skipped: SkippedLog,
        changed_data: bool,
        **named: Any,
    ) -> None:
        super().__init__(model=model, args=arguments, callbacks=[_Intervals(self), *callbacks], **named)
        self.monitor = LossMonitor(arguments.device)
        self.registry = registry
        self.fingerprints = fingerprints
        self.skipped = skipped
        self.changed_data = changed_data
        self.has_begun = False
        # after the last step; None within an update of the weights
        self.random_state: RandomState | None = None
        self._sums_before: tuple[Tensor, Tensor] | None = None  # losses before an unfinished step
        self._interval: Mapping[str, Any] | None = None  # of the resume point

    def point(self) -> Path:
        """Return the folder of the resume point of the last finished step."""
        return Path(str(self.args.output_dir)) / RESUME_POINTS / f"step-{self.state.global_step}"

    def save_point(self) -> None:
        """Write a resume point, a checkpoint with the trainer's state; remove all but the last ones."""
        point = self.point()
        self._drop_unfinished_step()
        save_checkpoint(self.model, point, registry=self.registry, beside=self._write_state)
        if is_main():
            unfinished = point.parent.glob(".step-*")  # of an interrupted run
            for old in [*resume_points(point.parents[1])[:-MAX_RESUME_POINTS], *unfinished]:
                remove_folder(old)

    def _write_state(self, folder: Path) -> None:
        """Write the trainer's state into the folder of a resume point."""
        folder = folder / STATE
        interval = {
            "last_logged": self._globalstep_last_logged,
            "loss": total(self._tr_loss).item() / world_size(),
            "sums": self.monitor.sums(),
            **self.skipped.state(self.args.device),
        }
        with writing(folder):
            folder.mkdir(exist_ok=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            if is_main():
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                for name, content in (
                    (PROCESSES, world_size()),
                    (INTERVAL, interval),
                    (DATA, self.fingerprints),
                ):
                    (folder / name).write_text(json.dumps(content))

    def forget_interval(self) -> None:
        """Drop the losses since the last line of the log."""
        self.monitor.read()
        self._sums_before = None
        self._tr_loss.zero_()
        self._globalstep_last_logged = self.state.global_step

    def begin(self) -> None:
        """Continue the interval of the log in which the resume point was written."""
        self._tr_loss = self._tr_loss.double()
        if self._interval is not None:
            self._globalstep_last_logged = self._interval["last_logged"]
            self._tr_loss.fill_(self._interval["loss"])
            sums = torch.tensor(self._interval["sums"], dtype=torch.float64)
            if not is_main():  # the sums are over all processes
                sums[:2] = 0
            self.monitor.set_local_sums(sums)
            counts = Counts(*(self._interval[name] for name in COUNTS))
            limit = LimitStart(*(self._interval[name] for name in LIMIT))
            self.skipped.begin(self.state.global_step, counts, None if self.changed_data else limit)
        self.has_begun = True
        self.end_step()

    def begin_step(self) -> None:
        """Mark the start of a step, with its batches read."""
        self._sums_before = self._tr_loss.clone(), self.monitor.local_sums()

    def begin_update(self) -> None:
        """Mark the start of an update of the weights."""
        self.random_state = None

    def end_step(self) -> None:
        """Mark the end of a step: weights, optimizer and random numbers are those of a resume point."""
        self.random_state, self._sums_before = RandomState(), None
        self.skipped.end_step()

    def _drop_unfinished_step(self) -> None:
        """Remove gradients, losses and uses of random numbers of a step that raised before its update."""
        assert self.random_state is not None, "no update of the weights has begun"
        self.random_state.restore()
        self.model.zero_grad()
        if self._sums_before is not None:
            loss, sums = self._sums_before
            self._tr_loss.copy_(loss)
            self.monitor.set_local_sums(sums)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.optimizer.optimizer.state:  # before the first step; torch would make one to have a state
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=options)
        if is_main():
            for name, content in (
                (OPTIMIZER_NAME, state),
                (SCHEDULER_NAME, self.lr_scheduler.state_dict()),
            ):
                with writing(file := Path(output_dir) / name), file.open("wb") as opened:
                    torch.save(content, opened)  # a path would hide the error of the operating system

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        point = Path(checkpoint).parent
        self._interval = read_interval(point)
        if not (Path(checkpoint) / OPTIMIZER_NAME).is_file():  # before the first step
            return
        with state_errors(point):
            state = read_pickle(Path(checkpoint) / OPTIMIZER_NAME, CheckpointError)
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(
                self.model, self.optimizer.optimizer, optim_state_dict=state, options=options
            )
            schedule = read_pickle(Path(checkpoint) / SCHEDULER_NAME, CheckpointError)
            # Those of the next step: a run of another length saved the rates of another schedule.
            rates = [
                base * share(schedule["last_epoch"])
                for base, share in zip(self.lr_scheduler.base_lrs, self.lr_scheduler.lr_lambdas, strict=True)
            ]
            self.lr_scheduler.load_state_dict(schedule | {"_last_lr": rates})
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with state_errors(Path(checkpoint or "").parent):
            for file in sorted(Path(checkpoint).glob("rng_state*")) if checkpoint else ():
                with safe_globals():  # numpy's, which the library reads
                    read_pickle(file, CheckpointError)
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do nothing: the model is built from the resume point before training."""


class _Intervals(TrainerCallback):
    """A callback that logs the last step, and writes no resume point for it: the run ends with a checkpoint.

    A resumed run has the intervals of its own recipe: the trainer would take those in the resume point. The callback
    also calls the trainer around each update of the weights.
    """

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        state.compute_steps(args, state.max_steps)
        self.trainer.begin()

    def on_step_begin(self, *_: Any, **named: Any) -> None:
        self.trainer.begin_step()

    def on_pre_optimizer_step(self, *_: Any, **named: Any) -> None:
        self.trainer.begin_update()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        self.trainer.end_step()
        if state.global_step >= state.max_steps:
            control.should_log, control.should_save = True, False


def resume_points(out: Path) -> list[Path]:
    """Return the resume points of a run, oldest first."""
    points = (out / RESUME_POINTS).glob("step-*")
    return sorted(
        (point for point in points if point.name[5:].isdecimal()), key=lambda point: int(point.name[5:])
    )
