"""The optimizer of a training, its learning rates, and the gradients that it gets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from dreamkit.recipe.sections import TrainSection

# Biases and the weights of norms, by their names.
NO_DECAY: Final = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.|_)norm(?:$|\.)")


def make_optimizer(model: nn.Module, train: TrainSection) -> AdamW:
    """Return AdamW (arXiv 1711.05101) of the trainable parameters. Biases and norms have no weight decay."""
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            without = NO_DECAY.search(name.lower()) is not None or name.startswith(norms)
            (others if without else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=train.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def make_schedule(optimizer: AdamW, train: TrainSection, step: int) -> LRScheduler:
    """Return the learning rates from the first step after `step` on, a function of the step and the recipe."""
    for group in optimizer.param_groups:
        group["initial_lr"] = train.learning_rate
    schedule: LRScheduler = get_scheduler(
        train.schedule,
        optimizer,
        num_warmup_steps=train.warmup,
        num_training_steps=train.steps,
        scheduler_specific_kwargs={"last_epoch": step - 1},
    )
    return schedule


def update(optimizer: AdamW, is_bad: Tensor) -> None:
    """Run a step of the optimizer. If `is_bad` () is 1, weights and state stay as they are, bit by bit.

    The fused kernel reads the number on the device. torch's gradient scaler sets the same attribute.
    """
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]
    optimizer.step()


def clip_gradients(trained: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients so that their norm () is at most `max_norm`; return the norm before, read by no host."""
    norm = torch.nn.utils.clip_grad_norm_(trained, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
