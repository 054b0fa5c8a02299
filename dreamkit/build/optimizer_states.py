"""The tensors that training keeps for each trained parameter beside its gradient: what an optimizer needs, and an EMA.

Resume points store them under these names. `dreamkit plan` counts their bytes.
"""

from __future__ import annotations

from math import prod
from typing import Final, NamedTuple

import torch
from torch import Tensor

from dreamkit.recipe.sections import TrainSection

EMA: Final = "ema"  # the moving average of the parameter
STEP: Final = "step"  # number of steps that changed the parameter
# Behind the name of an 8-bit tensor, whose values are `codes` times the `scale` of their block.
CODES: Final = ".codes"
SCALE: Final = ".scale"
MOMENTS: Final = ("exp_avg", "exp_avg_sq")  # running means of the gradient and of its square
LEAST_8BIT: Final = 4096  # values of a tensor whose state has 8 bits, as in torchao and bitsandbytes
BLOCK: Final = 256  # most values that share a scale, as in torchao
LEAST_BLOCK: Final = 16


class StateTensor(NamedTuple):
    """A tensor of a parameter's state. `is_divided`: processes divide it along its first dimension, as the parameter.

    One that is not divided is the same in every process.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_divided: bool


def state_of(parameter: Tensor, train: TrainSection) -> dict[str, StateTensor]:
    """Return the tensors of a trained parameter's state, by name.

    - `adamw` has two numbers for each value of the parameter.
    - `adafactor` has the means of squared gradients over the last and over the next to last dimension; those of a
      vector are kept whole.
    - `adamw8bit` has the two of AdamW in 8 bits, for matrices of at least `LEAST_8BIT` values.
    """
    shape, dtype = tuple(parameter.shape), parameter.dtype
    same = StateTensor(shape, dtype, is_divided=bool(shape))
    state = {STEP: StateTensor((), torch.float32, is_divided=False)}
    block = block_size(shape)
    if train.optimizer == "adafactor" and len(shape) > 1:
        state["row_mean"] = StateTensor(shape[:-1], dtype, is_divided=True)
        state["column_mean"] = StateTensor(shape[:-2] + shape[-1:], dtype, is_divided=len(shape) > 2)
    elif train.optimizer == "adafactor":
        state["exp_avg_sq"] = same
    elif train.optimizer == "adamw8bit" and block is not None:
        blocks = (shape[0], prod(shape[1:]) // block)
        for name in MOMENTS:
            state[name + CODES] = StateTensor(shape, torch.uint8, is_divided=True)
            state[name + SCALE] = StateTensor(blocks, torch.float32, is_divided=True)
    else:
        state |= {name: same for name in MOMENTS}
    return state if train.ema is None else state | {EMA: same}


def block_size(shape: tuple[int, ...]) -> int | None:
    """Return the number of values that share a scale in the 8-bit state of a parameter; None if its state is whole.

    It divides the size of a row, so that no block crosses the border of two processes, however many there are.
    """
    if len(shape) < 2 or prod(shape) < LEAST_8BIT:
        return None
    row = prod(shape[1:])
    block = next(size for size in range(min(BLOCK, row), 0, -1) if row % size == 0)
    return block if block >= LEAST_BLOCK else None
