"""Records what makes the host wait for the device, where a real step has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READINGS = ("tolist", "numpy", "cpu", "__array__")  # which are no operators, or none on a CPU
ASKING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Asked(TorchDispatchMode):
    """While it is entered, `found` collects what asks for the values of tensors: one by one, by number or by shape.

    `on_host` says which tensors lie on the host even where there is a device: asking these is free.
    """

    def __init__(self, on_host: Callable[[Tensor], bool] = lambda tensor: False) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0
        self.on_host = on_host

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        packet = func._overloadpacket
        indices = args[1] if packet in (torch.ops.aten.index, torch.ops.aten.index_put_) else ()
        masked = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)
        # only a mask makes the shape of what is indexed a matter of values
        tagged = packet is not torch.ops.aten.index and bool(ASKING & {*func.tags})
        asks = masked or tagged
        if asks and not self.on_host(args[0]):
            self.found.append(str(func))
        output = func(*args, **(kwargs or {}))
        self.found += [f"{func} {a} -> {b}" for a, b in self._copies(func, args, output)]
        return output

    @staticmethod
    def _copies(func: Any, args: tuple[Any, ...], output: Any) -> Iterator[tuple[str, str]]:
        """From one device to another; a number of the host may go along as an argument."""
        given = [each for each in tree_leaves(args) if isinstance(each, Tensor)]
        source = given[-1].device.type if given and given[-1].dim() else ""
        for each in tree_leaves(output):
            if isinstance(each, Tensor) and source and source != each.device.type:
                yield source, each.device.type

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Readings that are no operators are recorded too."""

        def spied(name: str) -> Any:
            real = getattr(Tensor, name)

            def reading(tensor: Tensor, *args: Any, **named: Any) -> Any:
                self.found.append(name)
                return real(tensor, *args, **named)

            return patch.object(Tensor, name, reading)

        patches = [spied(name) for name in READINGS]
        for each in patches:
            each.start()
        try:
            with self:
                yield
        finally:
            for each in patches:
                each.stop()
