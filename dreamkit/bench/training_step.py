"""A training step of stage II: ours, the same without any fused path, and that with documents padded to the longest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import dreamkit.model.model
from dreamkit import kernels
from dreamkit.bench import stage
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Batch, Collator
from dreamkit.kernels.bench.figures import Figure, extrapolated
from dreamkit.kernels.bench.harness import Bench, Case, measured
from dreamkit.kernels.bench.measurements import Record, Records, Verdict, at_least
from dreamkit.kernels.label_loss import LabelLoss
from dreamkit.kernels.label_loss.reference import label_loss_reference
from dreamkit.registry.registry import Registry

TABLE, TOKENS, LOSS = "training step", "training step, useful tokens", "loss of a training step"
EAGER, PADDED, OURS = "eager", "eager, padded", "ours"
FEW, MANY, ALL = 4, 8, 32  # layers: measured, measured, and of the whole model
STEP_SPEEDUP, TOKENS_SPEEDUP = 1.15, 2.0


class Step:
    """A model of `layers` layers with its optimizer, and one batch of documents, packed and padded."""

    def __init__(self, layers: int, bench: Bench) -> None:
        registry = Registry.load()
        self.recipe = stage.recipe(layers, bench.small, registry)
        self.device = bench.device
        model = self.model = stage.at_random(lambda: build(fit(self.recipe, registry)), self.device)
        train = self.recipe.train
        model.set_trainable(train.trainable)
        if train.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # at a rate of 0 each step starts from the same weights, and all candidates find the same loss
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0, weight_decay=train.weight_decay)
        model.language_model.tokenize = _numbers  # type: ignore[method-assign]
        vocabulary = model.language_model.spec.vocab_size
        documents = stage.documents(train.batch_size, range(vocabulary // 2, vocabulary), bench.small)
        packed = Collator(
            model.sequencer(train.max_length),
            model.vision_encoder.preprocess,
            model.image_decoder.preprocess,
            condition_drop=self.recipe.loss.condition_drop,
        )
        self.packed = packed(documents).to(self.device)
        self.padded = replace(packed, packing=False)(documents).to(self.device)
        self.tokens = int((self.packed.segment_ids_BT >= 0).sum())

    def run(self, batch: Batch) -> Tensor:
        """Forward, backward and the optimizer's step, with the same noise each time; the loss."""
        torch.manual_seed(0)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.recipe.train.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def hidden(self) -> Tensor:
        """Hidden states of the packed batch, at random."""
        rows = self.packed.input_ids_BT.numel()
        return torch.randn(rows, self.model.language_model.spec.dim, device=self.device, requires_grad=True)

    def loss(self, hidden_RD: Tensor) -> tuple[Tensor | None, ...]:
        """The language model's, and the gradients of the hidden states and of what is trained of the head."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model.label_losses(hidden_RD, self.packed).total
        return loss.detach(), *torch.autograd.grad(loss, [hidden_RD, *self.trained], allow_unused=True)


@contextmanager
def unfused() -> Iterator[None]:
    """Without kernels, and with the logits of all labelled rows at once."""

    def full(*arguments: Any) -> LabelLoss:
        return LabelLoss(*label_loss_reference(*arguments))

    with kernels.disabled(), patch.object(dreamkit.model.model, "label_loss", full):
        yield


def section(bench: Bench) -> Iterator[Record]:
    """Of two depths, and of the whole model by the line through them."""
    for layers in (FEW, MANY):
        made = cache(partial(Step, layers >> 2 if bench.small else layers, bench))
        case = Case(
            TABLE,
            f"{layers} layers",
            partial(_inputs, made),
            {
                EAGER: unfused()(lambda step: step.run(step.packed)),
                PADDED: unfused()(lambda step: step.run(step.padded)),
                OURS: lambda step: step.run(step.packed),
            },
            memory=True,
        )
        for record in measured(bench, case):
            yield record
            yield from _tokens(record, made)
        yield from measured(
            bench,
            replace(
                case,
                table=LOSS,
                inputs=partial(_inputs, made, hidden=True),
                candidates={EAGER: unfused()(Step.loss), OURS: Step.loss},
            ),
        )
        made.cache_clear()
        bench.clock.free()  # before the next one is made
    for candidate in (EAGER, PADDED, OURS):
        few, many = (bench.found.figure(TABLE, f"{layers} layers", candidate) for layers in (FEW, MANY))
        if few is not None and many is not None:
            yield Record(TABLE, _whole(), candidate, figure=extrapolated(FEW, few, MANY, many, ALL))
        elif any(bench.found.failed(TABLE, f"{layers} layers", candidate) for layers in (FEW, MANY)):
            yield Record(TABLE, _whole(), candidate, problem="a depth failed", failed=True)


def _inputs(made: Callable[[], Step], hidden: bool = False) -> tuple[Any, ...]:
    return (made(), made().hidden()) if hidden else (made(),)


def _tokens(record: Record, made: Callable[[], Step]) -> Iterator[Record]:
    """Useful tokens a second, of a step's time."""
    if record.table == TABLE and record.figure is not None:
        (time, spread), count = record.figure, made().tokens
        yield replace(record, table=TOKENS, unit="/s", figure=Figure(count / time, count * spread / time**2))


def targets(records: Records) -> Iterator[Verdict]:
    """The batches hold the same documents, so that tokens a second are to each other as the steps' times are."""
    for other, wanted, what in (
        (EAGER, STEP_SPEEDUP, "the same step in eager, padding removed"),
        (PADDED, TOKENS_SPEEDUP, "the useful tokens a second of padding to the longest"),
    ):
        found = records.speedup(TABLE, _whole(), other, OURS)
        yield at_least(f"{_whole()}: {wanted:g} x {what}", wanted, [(found, _whole())], "x")


def _whole() -> str:
    return f"{ALL} layers, by slope"


def _numbers(text: str, special: bool = False) -> list[int]:
    """The tokens of a text that is their numbers."""
    return [int(number) for number in text.split()]
