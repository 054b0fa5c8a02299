"""The steps of a training: transformers' `Trainer` with two losses, sums over the global batch, and their checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence as Sequences, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from dreamkit.data.batch import Batch, Collator
from dreamkit.data.sequence import Sequence
from dreamkit.data.skipped import SKIPPED
from dreamkit.data.workers import WorkerStart, original_errors
from dreamkit.distributed import total, whole, world_size
from dreamkit.errors import TrainingError, count
from dreamkit.model.model import DreamModel, Losses
from dreamkit.parts.precision import full_float64
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.agreement import Agreement
from dreamkit.training.data_wait import DataWait
from dreamkit.training.loss_monitor import NotFinite
from dreamkit.training.resumable import ResumableTrainer
from dreamkit.training.skipped_log import SkippedLog

MAX_NAMES = 10  # documents in one error


def training_arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """Return the trainer's settings. Under `torchrun`, this call joins the other processes."""
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
        # The filter hides losses that are not finite, and copies the loss to the host in each step.
        logging_nan_inf_filter=False,
        save_strategy="steps" if section.save_every else "no",
        save_steps=section.save_every or 1,
        dataloader_num_workers=section.workers,
        # A batch is copied to the device while the host continues.
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    assert arguments.device is not None
    arguments._n_gpu = 1  # one device per process: DataParallel cannot split a batch
    return arguments


class DreamTrainer(ResumableTrainer):
    """A trainer of a `DreamModel` on samples in their order.

    Gradients are those of the global batch over all processes and accumulation steps: they do not depend on how it is
    divided among these.
    """

    def __init__(
        self,
        model: DreamModel,
        recipe: Recipe,
        arguments: TrainingArguments,
        samples: Dataset[Sequence],
        collator: Collator,
        callbacks: Sequences[TrainerCallback] = (),
        registry: Registry | None = None,
        fingerprints: Sequences[Mapping[str, str]] = (),
        changed_data: bool = False,
    ) -> None:
        model.train()
        section = recipe.train
        skipped = SkippedLog(
            Path(str(arguments.output_dir)) / SKIPPED,
            section.max_skipped,
            section.batch_size * section.accumulation * world_size(),
        )
        super().__init__(
            model,
            arguments,
            callbacks,
            registry,
            fingerprints,
            skipped,
            changed_data,
            train_dataset=samples,
            data_collator=cast(Any, collator.share),  # returns a Batch, not a dict of tensors
        )
        self.collator = collator
        self.remove_callback(PrinterCallback)
        # With several processes the model is sharded (`dreamkit.distributed.shard`): accelerate must not use DDP.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.autocast = partial(
            torch.autocast,
            arguments.device.type,
            torch.bfloat16,
            enabled=recipe.train.precision == "bfloat16",
        )
        self.full_float64 = partial(full_float64, recipe.train.precision == "float64")
        self.agreement = Agreement()
        self.data_wait = DataWait(arguments.device)
        self.has_diverged = False
        self._batch = 0  # number of this process's next batch in the run

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(cast(Sized, self.train_dataset))

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = super().get_train_dataloader()
        # Batches are read by the loader that accelerate wraps; a resumed run copies the wrapper.
        for each in (loader, getattr(loader, "base_dataloader", loader)):
            if not isinstance(each.worker_init_fn, WorkerStart):
                each.worker_init_fn = WorkerStart(each.worker_init_fn)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Return the batches of one step, and their counts over all processes (2,): labelled tokens, images to draw."""
        self._batch = self.state.global_step * self.args.gradient_accumulation_steps

        def read() -> list[Batch]:
            with original_errors():
                return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]

        with self.data_wait.waiting():  # the processes meet here: for the slowest one's data, too
            batches, skipped = self.agreement.call(
                read, lambda batches: [document for batch in batches for document in batch.skipped]
            )
        step = self.state.global_step + 1
        self.skipped.add(step, skipped, sum(batch.cut for batch in batches))
        if (error := self.skipped.limit_error(step)) is not None:
            self.agreement.stop(error)
        return batches, total(torch.stack([batch.counts for batch in batches]).sum(0).to(device))

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: `dreamkit plan` counts operations, and transformers' estimate does not fit this model."""
        return 0

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward of one `Batch`; `num_items_in_batch` are the counts (2,) of the global batch."""
        with self.full_float64():  # also of layers that the backward pass recomputes
            with self.autocast():
                losses: Losses = model(inputs, counts=num_items_in_batch)
            # FSDP averages gradients over processes, but the losses are parts of a sum.
            loss = losses.loss * world_size()
            self.accelerator.backward(loss)
        self.monitor.add(self.state.global_step + 1, self._documents(), losses, num_items_in_batch)
        self._batch += 1
        return loss.detach()

    def _documents(self) -> range:
        """Return the numbers of the documents in this process's batch: processes take whole batches in turn."""
        size = self.args.per_device_train_batch_size
        start = (self._batch * world_size() + self.args.process_index) * size
        return range(start, start + size)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Tensor:
        """Return the norm of the gradients before clipping. If it is not finite, set them to zero."""
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.monitor.add_gradient(self.state.global_step + 1, norm)
        not_finite = ~norm.isfinite()  # on the device: no copy to the host in a step
        for parameter in model.parameters():
            if parameter.grad is not None:
                grad = parameter.grad
                (grad.to_local() if isinstance(grad, DTensor) else grad).masked_fill_(not_finite, 0.0)
        return norm

    def check(self) -> None:
        """Check every loss and gradient since the last call. Every process must call this method.

        Raises:
            TrainingError: one is not finite; the message, in every process, names step and documents.
        """
        problem = self.monitor.check()
        if problem is not None:
            self.agreement.is_stopping = self.has_diverged = True
            self.forget_interval()
            raise TrainingError(self.describe(problem))

    def describe(self, problem: NotFinite) -> str:
        """Return the error message, which names the documents that are not finite alone, or else all suspects.

        Each suspect is run alone: documents of a packed row can make each other's losses NaN, and gradients add up.
        """
        names = {number: self._sample(number).name for number in problem.documents}
        bad = [name for number, name in names.items() if not self._is_finite_alone(number)]
        suspects = list(dict.fromkeys(bad or names.values()))
        listed = ", ".join(f"'{name}'" for name in suspects[:MAX_NAMES])
        more = f" and {len(suspects) - MAX_NAMES} more" if len(suspects) > MAX_NAMES else ""
        exception, fix = (
            ("", "check that document, or ")
            if bad
            else (", though each of its documents is finite alone", "")
        )
        return (
            f"step {problem.step}: the {problem.quantity} is not finite{exception}: {listed}{more}; "
            f"{fix}lower train.learning_rate or train.max_grad_norm"
        )

    def _is_finite_alone(self, number: int) -> bool:
        """Return True if a document alone has a finite loss and gradient; overwrites the gradients of the model."""
        self.model.zero_grad()
        batch = self.collator.collate([self._sample(number)]).to(self.args.device)
        with self.full_float64():
            with self.autocast():
                loss = self.model(batch).loss
            loss.backward()
        norm = whole(super()._get_grad_norm(self.model))
        return bool(total(loss.detach()).isfinite()) and bool(norm.isfinite())

    def _sample(self, place: int) -> Sequence:
        return cast(Dataset[Sequence], self.train_dataset)[place]

    def data_notes(self) -> list[str]:
        """Return lines about documents that were skipped and cut. Every process must call this method."""
        totals = self.skipped.totals(self.args.device)
        ends = {"skipped": f", listed in {self.skipped.path}", "cut": ", which were longer than a row"}
        return [
            f"{verb} {count(f'{totals[verb]:,}', 'document')}{end}"
            for verb, end in ends.items()
            if totals[verb]
        ]

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add both losses to an entry of the log, after a check that they are finite."""
        if "loss" in logs:  # not the final summary
            self.check()
            logs |= self.monitor.read() | {"data_wait": self.data_wait.read()}
            logs |= self.skipped.totals(self.args.device)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check()
        self.save_point()
