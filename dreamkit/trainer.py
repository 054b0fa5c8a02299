"""transformers' `Trainer`, fitted to a `DreamModel`: two losses, one global reduction, and checkpoints of our own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from dreamkit.batch import Batch, Collator
from dreamkit.checkpoint import save_checkpoint
from dreamkit.distributed import is_main, total, world_size
from dreamkit.document import Document
from dreamkit.meter import Meter
from dreamkit.model import DreamModel, Losses
from dreamkit.recipe import Recipe

RESUME_POINTS = "checkpoints"  # folder of the folders `step-N`
STATE = "trainer"  # the trainer's state, inside a resume point
KEPT = 2


def training_arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """The trainer's settings. Asks for the device, which joins the other processes where there are any."""
    section = recipe.train
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=section.steps,
        per_device_train_batch_size=section.batch_size,
        gradient_accumulation_steps=section.accumulation,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.schedule,
        warmup_steps=section.warmup,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="adamw_torch",
        seed=section.seed,
        logging_steps=section.log_every,
        # Replacing losses that are not finite would hide them, and reads the device at every step.
        logging_nan_inf_filter=False,
        save_strategy="steps" if section.save_every else "no",
        save_steps=section.save_every or 1,
        dataloader_num_workers=section.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    assert arguments.device is not None
    arguments._n_gpu = 1  # one process drives one device; DataParallel could not split a batch
    return arguments


class DreamTrainer(Trainer):
    """Trains a `DreamModel` on documents in the order they come.

    Gradients are those of `DreamModel.forward` with the counts of the global batch, over all processes and
    accumulation steps; it makes no difference how a global batch is divided among them.
    """

    model: DreamModel
    optimizer: Any  # accelerate's wrapper of torch's
    lr_scheduler: Any

    def __init__(
        self,
        model: DreamModel,
        recipe: Recipe,
        arguments: TrainingArguments,
        documents: Dataset[Document],
        collator: Collator,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        model.train()
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=documents,
            data_collator=cast(Any, collator),  # to a Batch, and not to a dict of tensors
            callbacks=[_LogLastStep(), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        # Several processes mean a sharded model (`dreamkit.distributed.shard`): accelerate must not wrap it in DDP.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.autocast = partial(
            torch.autocast,
            arguments.device.type,
            torch.bfloat16,
            enabled=recipe.train.precision == "bfloat16",
        )
        self.meter = Meter(arguments.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(cast(Sized, self.train_dataset))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The batches of one step, and the labelled tokens and drawn images in them over all processes, (2,)."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        return batches, total(torch.stack([batch.counts for batch in batches]).sum(0).to(device))

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one `Batch`; `num_items_in_batch` are the counts of the global one, a tensor."""
        with self.autocast():
            losses: Losses = model(inputs, counts=num_items_in_batch)
        self.meter.add(self.state.global_step + 1, inputs, losses, num_items_in_batch)
        # Gradients are averaged over processes, but the losses are shares of a sum.
        loss = losses.loss * world_size()
        self.accelerator.backward(loss)
        return loss.detach()

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        if "loss" in logs:  # and not the closing summary
            logs |= self.meter.read()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A resume point: a dreamkit checkpoint with the trainer's state in it. The last ones are kept."""
        self.meter.check()
        points = Path(str(self.args.output_dir)) / RESUME_POINTS
        save_checkpoint(self.model, points / f"step-{self.state.global_step}", beside=self._write_state)
        if is_main():
            unfinished = points.glob(".step-*")  # what an interrupted run left
            for old in [*resume_points(points.parent)[:-KEPT], *unfinished]:
                shutil.rmtree(old)

    def _write_state(self, folder: Path) -> None:
        folder = folder / STATE
        folder.mkdir(exist_ok=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        if is_main():
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=options)
        if is_main():
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(
            self.model, self.optimizer.optimizer, optim_state_dict=state, options=options
        )
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The model was built from the resume point already."""


class _LogLastStep(TrainerCallback):
    """Logs the last step too, and leaves its checkpoint to the end of the run."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_log, control.should_save = True, False


def resume_points(out: Path) -> list[Path]:
    """The resume points of a run, oldest first."""
    points = (out / RESUME_POINTS).glob("step-*")
    return sorted(
        (point for point in points if point.name[5:].isdecimal()), key=lambda point: int(point.name[5:])
    )
