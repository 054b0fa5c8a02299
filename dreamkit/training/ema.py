"""Moving averages of the trained weights (EMA), which are tensors of the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import Optimizer

from dreamkit.build.optimizer_states import EMA
from dreamkit.distributed import local
from dreamkit.training.sharding import end_passes


def decay(most: float, step: int) -> float:
    """Return the decay of the averages at a step, numbered from 1: lower at first, so that they forget the start.

    It is min(most, (1 + step) / (10 + step)), as of TensorFlow's `tf.train.ExponentialMovingAverage`.
    """
    return min(most, (1 + step) / (10 + step))


def update_averages(optimizer: Optimizer, is_bad: Tensor, step: int) -> None:
    """Move each average, after the update of a step numbered from 1, unless `is_bad` () is 1. No host reads a value."""
    weight: Tensor | None = None
    for parameter, average, most in _averages(optimizer):
        if weight is None:  # trained weights have one type
            weight = (1 - is_bad.to(average.dtype)) * (1 - decay(most, step))
        average.lerp_(parameter, weight)


def has_averages(optimizer: Optimizer) -> bool:
    """Return True if there are averages of the weights."""
    return next(_averages(optimizer), None) is not None


@contextmanager
def averaged(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Give the model the averages in the place of its trained weights, in a block that every process must enter.

    Both are exchanged in place, one tensor at a time; at the end the weights are what they were, bit by bit. Without
    averages, nothing happens.
    """
    _exchange(model, optimizer)
    try:
        yield
    finally:
        _exchange(model, optimizer)


def _exchange(model: nn.Module, optimizer: Optimizer) -> None:
    if not has_averages(optimizer):
        return
    for parameter, average, _ in _averages(optimizer):
        before = parameter.clone()
        parameter.copy_(average)
        average.copy_(before)
    end_passes(model)  # what a forward pass has gathered is out of date


def _averages(optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield this process's slices of each trained parameter and of its average, and the greatest decay."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["ema"] is not None:
                yield local(parameter), local(optimizer.state[parameter][EMA]), group["ema"]
