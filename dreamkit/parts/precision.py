"""Keeping modules that half precision breaks in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def keeping_float32(
    modules: Iterable[nn.Module], change: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """`change`, as `nn.Module._apply` takes it, but that brings no tensor of `modules` to less than float32."""
    kept = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}

    def changed(tensor: Tensor) -> Tensor:
        new = change(tensor)
        is_half = new.is_floating_point() and new.dtype.itemsize < torch.float32.itemsize
        # from what it was: what has once been rounded to half precision stays rounded
        return tensor.to(new.device) if is_half and id(tensor) in kept else new

    return changed
