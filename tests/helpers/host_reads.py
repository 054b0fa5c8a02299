"""A record of operations that make the host wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("tolist", "numpy", "cpu", "__array__")  # methods that call no operator, or none on a CPU
VALUE_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostReads(TorchDispatchMode):
    """A mode that collects, in `reads`, operators that read values of tensors or copy tensors between devices.

    `on_host` returns True for a tensor that is always on the host, where reading it is free.
    """

    def __init__(self, on_host: Callable[[Tensor], bool] = lambda tensor: False) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.operators = 0
        self.on_host = on_host

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # the mode then gets the operators on its shards
        self.operators += 1
        packet = func._overloadpacket
        indices = args[1] if packet in (torch.ops.aten.index, torch.ops.aten.index_put_) else ()
        masked = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)
        # the shape of an indexed tensor depends on values only if the index is a mask
        tagged = packet is not torch.ops.aten.index and bool(VALUE_TAGS & {*func.tags})
        is_read = masked or tagged
        if is_read and not self.on_host(args[0]):
            self.reads.append(str(func))
        output = func(*args, **(kwargs or {}))
        self.reads += [f"{func} {a} -> {b}" for a, b in self._copies(func, args, output)]
        return output

    @staticmethod
    def _copies(func: Any, args: tuple[Any, ...], output: Any) -> Iterator[tuple[str, str]]:
        """Yield source and target of copies between devices; a scalar argument on the host is not a copy."""
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        source = tensors[-1].device.type if tensors and tensors[-1].dim() else ""
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and source and source != leaf.device.type:
                yield source, leaf.device.type

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record methods that call no operator, too."""

        def record(name: str) -> Any:
            method = getattr(Tensor, name)

            def read(tensor: Tensor, *args: Any, **named: Any) -> Any:
                self.reads.append(name)
                return method(tensor, *args, **named)

            return patch.object(Tensor, name, read)

        patches = [record(name) for name in READS]
        for one in patches:
            one.start()
        try:
            with self:
                yield
        finally:
            for one in patches:
                one.stop()
