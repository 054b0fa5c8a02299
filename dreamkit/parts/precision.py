"""Support for modules that do not work in half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def keep_float32(
    modules: Iterable[nn.Module], change: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return `change`, for `nn.Module._apply`, altered to keep the tensors of `modules` in float32 or more."""
    protected = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}

    def change_but_keep(tensor: Tensor) -> Tensor:
        new = change(tensor)
        is_half = new.is_floating_point() and new.dtype.itemsize < torch.float32.itemsize
        # Moves `tensor`, not `new`: `new` has already been rounded to half precision.
        return tensor.to(new.device) if is_half and id(tensor) in protected else new

    return change_but_keep
