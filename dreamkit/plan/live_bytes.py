"""A counter of the bytes that a computation keeps alive, and of its floating-point operations."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Kind = Literal["activations", "gradients"]

_aten = torch.ops.aten
# torch has no formula for the CPU's fused attention, whose operators take the same arguments as the others
_FLOPS: Final[dict[Any, Any]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_efficient_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_efficient_attention_backward
    ],
    **flop_registry,
}


@dataclass(frozen=True)
class Bytes:
    """Bytes of the tensors alive at one moment, without weights and optimizer states."""

    activations: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        return self.activations + self.gradients

    def plus(self, kind: Kind, count: int) -> Bytes:
        return replace(self, **{kind: getattr(self, kind) + count})


@dataclass
class _Storage:
    reference: weakref.ref[torch.UntypedStorage]
    kind: Kind
    count: int


class LiveBytes(TorchDispatchMode):
    """A dispatch mode that counts each storage that an operator returns, from then until its end.

    `now` has the live bytes and `peak` their maximum so far. `flops` are the floating-point operations of matrix
    products, convolutions and attention so far; a multiplication and an addition are two.
    """

    def __init__(self, *, uncounted: Iterable[Tensor] = ()) -> None:
        """Start at 0 and never count the storages of the `uncounted` tensors."""
        super().__init__()
        self.now = self.peak = Bytes()
        self.flops = 0
        self._storages: dict[int, _Storage] = {}
        for tensor in uncounted:
            self._add(tensor.untyped_storage(), "activations", 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True  # a part that reads a boolean checks its input, which is valid here
        output = func(*args, **kwargs)
        formula = _FLOPS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=output)
        for each in output if isinstance(output, tuple | list) else (output,):
            if isinstance(each, Tensor):
                self.count(each)
        return output

    def count(self, tensor: Tensor) -> None:
        """Count the storage of `tensor`, unless it is counted already."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._storages:
            self._add(storage, "activations", storage.nbytes())

    def recount(self, tensor: Tensor, kind: Kind, count: int) -> None:
        """Count the storage of `tensor` as `count` bytes of `kind` from now on."""
        storage = tensor.untyped_storage()
        known = self._storages.pop(id(storage), None)
        if known is not None:
            self.now = self.now.plus(known.kind, -known.count)
        self._add(storage, kind, count)

    def _add(self, storage: torch.UntypedStorage, kind: Kind, count: int) -> None:
        key = id(storage)
        self._storages[key] = _Storage(weakref.ref(storage, partial(self._remove, key)), kind, count)
        self.now = self.now.plus(kind, count)
        if self.now.total > self.peak.total:
            self.peak = self.now

    def _remove(self, key: int, reference: weakref.ref[torch.UntypedStorage]) -> None:
        known = self._storages.get(key)
        if known is not None and known.reference is reference:
            del self._storages[key]
            self.now = self.now.plus(known.kind, -known.count)
