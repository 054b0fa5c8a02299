"""Moving averages of the trained weights (EMA), which are tensors of the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dreamkit.build.optimizer_states import EMA
from dreamkit.distributed import local
from dreamkit.training.sharding import end_passes

MOST_VALUES: Final = 2**22  # exchanged at once


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

    Both are exchanged in place; at the end the weights are what they were, bit by bit. Without averages, nothing
    happens. All memory is allocated before the first exchange: one without enough would leave weights of both kinds.
    """
    pairs = [(parameter, average) for parameter, average, _ in _averages(optimizer)]
    if not pairs:
        yield
        return
    # trained weights have one type and device
    spare = pairs[0][0].new_empty(max(rows.numel() for weights, _ in pairs for rows in _slices(weights)))
    _exchange(model, pairs, spare)
    try:
        yield
    finally:
        _exchange(model, pairs, spare)


def _exchange(model: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], spare: Tensor) -> None:
    for pair in pairs:
        for weights, average in zip(*map(_slices, pair), strict=True):
            before = spare[: weights.numel()].view(weights.shape)
            before.copy_(weights)
            weights.copy_(average)
            average.copy_(before)
    end_passes(model)  # what a forward pass has gathered is out of date


def _slices(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of a tensor in slices of up to `MOST_VALUES` values, or of one row; they share its memory."""
    tensor = torch.atleast_1d(tensor)
    return tensor.split(max(1, MOST_VALUES // max(1, tensor[:1].numel())))


def _averages(optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield this process's slices of each trained parameter and of its average, and the greatest decay."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["ema"] is not None:
                yield local(parameter), local(optimizer.state[parameter][EMA]), group["ema"]
