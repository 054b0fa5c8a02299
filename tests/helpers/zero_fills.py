"""A record of tensors that are filled with zeros."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

FILLS = {"zeros", "zeros_like", "new_zeros", "zero_", "zero"}


class ZeroFills(TorchDispatchMode):
    """A mode that collects, in `shapes`, the shape of each tensor that an operator fills with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func._overloadpacket.__name__ in FILLS:
            self.shapes.append((*output.shape,))
        return output
