"""Adafactor, whose state is much smaller than the weights: for a matrix, a number for each row and column."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreamkit.distributed import local, sum_slices

DECAY: Final = 0.8  # the share of the newest squares in their mean is step^-0.8
EPSILON: Final = 1e-30  # added to the squares


class Adafactor(Optimizer):
    """Adafactor (arXiv 1804.04235, algorithm 4) with a learning rate from outside.

    The update is that of transformers' `Adafactor` with `scale_parameter=False, relative_step=False`: clipped to a root
    mean square of 1, times the learning rate. Neither the size of a tensor's weights nor the number of the step scales
    it. Weight decay is that of AdamW. The state is that of `dreamkit.build.optimizer_states`.

    Means over a sharded tensor are over all of it, not over the slice of a process. Libraries do not ensure this.

    Attributes:
        found_inf: tensor () that is 1 if the step must change nothing, else 0; on the device of the weights.
    """

    found_inf: Tensor

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient. Every process must call this method; no host reads a value."""
        is_bad = self.found_inf > 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = _update(parameter, self.state[parameter], is_bad).mul_(group["lr"])
                    values = local(parameter)
                    new = (values * (1 - group["lr"] * group["weight_decay"])).sub_(update)
                    torch.where(is_bad, values, new, out=values)


def _update(parameter: Tensor, state: dict[str, Tensor], is_bad: Tensor) -> Tensor:
    """Return this process's slice of the update with the learning rate 1; add the gradient to the state unless bad."""
    gradient = local(parameter.grad)  # type: ignore[arg-type]
    state["step"] += ~is_bad
    share = state["step"].to(gradient.dtype) ** -DECAY
    squares = gradient.square().add_(EPSILON)
    if parameter.ndim < 2:
        update = _average(state["exp_avg_sq"], squares, share, is_bad).rsqrt() * gradient
    else:
        sums = squares.sum(dim=-2)
        if parameter.ndim == 2:  # of more dimensions, a process has both whole
            sums = sum_slices(sums, parameter)
        rows = _average(state["row_mean"], squares.mean(dim=-1), share, is_bad)
        del squares
        columns = _average(state["column_mean"], sums / parameter.shape[-2], share, is_bad)
        # rows and columns have the same mean
        factor = (columns / columns.mean(dim=-1, keepdim=True)).rsqrt_()
        update = gradient * factor.unsqueeze(-2)
        update *= rows.rsqrt().unsqueeze(-1)
    square = sum_slices(torch.linalg.vector_norm(update).square(), parameter)
    return update.div_((square / max(1, parameter.numel())).sqrt().clamp_(min=1.0))


def _average(mean: Tensor, new: Tensor, share: Tensor, is_bad: Tensor) -> Tensor:
    """Add new values to a running mean with this share unless the step is bad; return this process's slice of it."""
    own = local(mean)
    return torch.where(is_bad, own, own.lerp(new, share), out=own)
