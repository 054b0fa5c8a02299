"""A training step, forward, backward and optimizer, and that of the paper's stage II."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import dreamkit.model.model
from benchmarks import paper_stage
from benchmarks.measure import Case, compile_options
from dreamkit import kernels
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Batch
from dreamkit.document import Document
from dreamkit.kernels.label_loss import LabelLoss
from dreamkit.kernels.label_loss.reference import label_loss_reference
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

LAYERS = (4, 8)  # of 32: one GPU has no room for the optimizer's state of all


class Step:
    """A model of random weights with its optimizer, and a batch of documents, packed and padded."""

    def __init__(
        self,
        recipe: Recipe,
        documents: Callable[[DreamModel], list[Document]],
        device: torch.device,
        small: bool,
    ) -> None:
        self.recipe, self.device, train = recipe, device, recipe.train
        torch.manual_seed(0)
        model = self.model = build(fit(recipe, Registry.load())).to(device)
        model.set_trainable(train.trainable)
        if train.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.compiled = torch.compile(model.train(), **compile_options(small))
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # a rate of 0 leaves the weights alone, so all candidates compute the same loss
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0, weight_decay=train.weight_decay, fused=True)
        collator = model.collator(recipe)
        batch = documents(model)
        self.packed = collator(batch).to(device)
        self.padded = replace(collator, packing=False)(batch).to(device)

    def run(self, model: Callable[[Batch], Any], batch: Batch) -> Tensor:
        """Run one step, always with the same noise; return the loss."""
        torch.manual_seed(0)
        is_bfloat16 = self.recipe.train.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_bfloat16):
            loss = model(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.recipe.train.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def run_masked(self) -> Tensor:
        """Run one step of the padded batch with masks (B, 1, T, T) in the language model."""
        language_model = self.model.language_model
        with patch.object(language_model, "spec", replace(language_model.spec, document_attention=False)):
            return self.run(self.model, self.padded)


def paper_step(layers: int, device: torch.device, small: bool) -> Step:
    """Return the step of the paper's stage II with `layers` layers in the language model."""
    recipe = paper_stage.recipe(layers, small, Registry.load())

    def documents(model: DreamModel) -> list[Document]:
        model.language_model.tokenize = paper_stage.token_numbers
        vocabulary = model.language_model.spec.vocab_size
        return paper_stage.documents(
            recipe.train.update_documents(1), range(vocabulary // 2, vocabulary), small
        )

    return Step(recipe, documents, device, small)


@contextmanager
def without_fused_paths() -> Iterator[None]:
    """Compute without kernels and with the logits of all labelled rows at once."""

    def whole_loss(*arguments: Any) -> LabelLoss:
        return LabelLoss(*label_loss_reference(*arguments))

    with kernels.disabled(), patch.object(dreamkit.model.model, "label_loss", whole_loss):
        yield


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Two depths, so that the time of a layer is a quarter of their difference."""
    unfused = without_fused_paths()
    candidates = {
        "eager": unfused(lambda step: step.run(step.model, step.packed)),
        "torch.compile": unfused(lambda step: step.run(step.compiled, step.packed)),
        "eager, padded": unfused(lambda step: step.run(step.model, step.padded)),
        "ours": lambda step: step.run(step.model, step.packed),
    }
    for layers in (1, 2) if small else LAYERS:
        yield Case(
            f"training step, {layers} layers", lambda n=layers: [paper_step(n, device, small)], candidates
        )
