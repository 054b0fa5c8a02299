"""The optimizer of a training, the gradients that it gets, and its step."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from dreamkit.build.optimizer_states import EMA, StateTensor, state_of
from dreamkit.build.parameter_groups import ParameterGroup
from dreamkit.distributed import local, sliced_like
from dreamkit.errors import TrainingError
from dreamkit.recipe.sections import TrainSection
from dreamkit.training.adafactor import Adafactor
from dreamkit.training.ema import update_averages

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def require_optimizer(train: TrainSection) -> None:
    """Check that the packages of `train.optimizer` are installed.

    Raises:
        TrainingError: one is missing.
    """
    if train.optimizer == "adamw8bit" and find_spec("torchao") is None:
        raise TrainingError(
            "train.optimizer: adamw8bit needs the package torchao, which is not installed; run pip install "
            "'dreamkit-core[optimizers]', or set train.optimizer=adamw"
        )


def make_optimizer(groups: Sequence[ParameterGroup], train: TrainSection) -> Optimizer:
    """Return the optimizer of the groups, with its state, in which the averages of `train.ema` begin as the weights.

    AdamW is that of arXiv 1711.05101. `set_learning_rates` sets the rates of the groups before each step.
    """
    own = [{"params": group.parameters, **_settings(group), "ema": train.ema} for group in groups]
    optimizer: Optimizer
    if train.optimizer == "adafactor":
        optimizer = Adafactor(own)
    elif train.optimizer == "adamw8bit":
        from dreamkit.training.adamw8bit import EightBitAdamW

        optimizer = EightBitAdamW(own, betas=BETAS, eps=EPSILON)
    else:
        optimizer = AdamW(own, betas=BETAS, eps=EPSILON, fused=True)
    for group in groups:
        for parameter in group.parameters:
            state = {name: _zeros(each, parameter) for name, each in state_of(parameter, train).items()}
            if EMA in state:
                # a sum has no -0.0, which a step that changes nothing would change
                local(state[EMA]).add_(local(parameter))
            optimizer.state[parameter] = state
    return optimizer


def _zeros(each: StateTensor, parameter: Tensor) -> Tensor:
    """Return the zeros of a state tensor, of which a process has the slice that it has of the parameter."""
    shape = (*local(parameter).shape[:1], *each.shape[1:]) if each.is_divided else each.shape
    own = torch.zeros(shape, dtype=each.dtype, device=parameter.device)
    return sliced_like(parameter, own, each.shape) if each.is_divided else own


def _settings(group: ParameterGroup) -> dict[str, float | str]:
    names = ("match", "learning_rate", "weight_decay", "warmup")
    return {name: getattr(group, name) for name in names}


def update(optimizer: Optimizer, is_bad: Tensor, step: int) -> None:
    """Run the step after `step` finished ones. If `is_bad` () is 1, weights and state stay as they are, bit by bit.

    AdamW's fused kernel reads the number on the device of the weights. torch's gradient scaler sets the same attribute.
    """
    device = optimizer.param_groups[0]["params"][0].device
    # With `cpu_offload`, the kernel runs on the host at once: it would not wait for torch's own copy of the number.
    is_bad = is_bad.to(device)
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]
    optimizer.step()
    update_averages(optimizer, is_bad, step + 1)


def clip_gradients(trained: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients so that their norm () is at most `max_norm`; return the norm before, read by no host."""
    norm = torch.nn.utils.clip_grad_norm_(trained, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
