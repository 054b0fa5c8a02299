"""The optimizer of a training, and the gradients that it gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from dreamkit.build.parameter_groups import ParameterGroup


def make_optimizer(groups: Sequence[ParameterGroup]) -> AdamW:
    """Return AdamW (arXiv 1711.05101) of the groups. `set_learning_rates` sets their rates before each step."""
    own = [{"params": group.parameters, **_settings(group)} for group in groups]
    return AdamW(own, betas=(0.9, 0.999), eps=1e-8, fused=True)


def _settings(group: ParameterGroup) -> dict[str, float | str]:
    names = ("match", "learning_rate", "weight_decay", "warmup")
    return {name: getattr(group, name) for name in names}


def update(optimizer: AdamW, is_bad: Tensor) -> None:
    """Run a step of the optimizer. If `is_bad` () is 1, weights and state stay as they are, bit by bit.

    The fused kernel reads the number on the device of the weights. torch's gradient scaler sets the same attribute.
    """
    device = optimizer.param_groups[0]["params"][0].device
    # With `cpu_offload`, the kernel runs on the host at once: it would not wait for torch's own copy of the number.
    optimizer.found_inf = is_bad.to(device)  # type: ignore[attr-defined]
    optimizer.step()


def clip_gradients(trained: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients so that their norm () is at most `max_norm`; return the norm before, read by no host."""
    norm = torch.nn.utils.clip_grad_norm_(trained, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
