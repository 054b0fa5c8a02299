"""Counting what a computation keeps in memory, and its floating-point operations, operator by operator."""

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
# torch counts every fused attention but the CPU's, whose operators take the same arguments
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
    """Bytes of tensors that live at one moment, weights and optimizer states aside."""

    activations: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        return self.activations + self.gradients

    def plus(self, kind: Kind, count: int) -> Bytes:
        return replace(self, **{kind: getattr(self, kind) + count})


@dataclass
class _Held:
    alive: weakref.ref[torch.UntypedStorage]
    kind: Kind
    count: int


class LiveBytes(TorchDispatchMode):
    """While it is entered, counts the storages that operators return for as long as they live.

    `now` are the live bytes, `peak` those of the moment when they were most, and `flops` the floating-point operations
    of matrix products, convolutions and attention so far, each multiplication and addition as one.
    """

    def __init__(self, *, besides: Iterable[Tensor] = ()) -> None:
        """`besides`: tensors whose storages are not to be counted."""
        super().__init__()
        self.now = self.peak = Bytes()
        self.flops = 0
        self._held: dict[int, _Held] = {}
        for tensor in besides:
            self._hold(tensor.untyped_storage(), "activations", 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True  # where code asks a tensor yes or no, it asks whether its input is sound
        output = func(*args, **kwargs)
        formula = _FLOPS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=output)
        for each in output if isinstance(output, tuple | list) else (output,):
            if isinstance(each, Tensor):
                self.count(each)
        return output

    def count(self, tensor: Tensor) -> None:
        """Counts the storage of `tensor`, unless it is known already."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._held:
            self._hold(storage, "activations", storage.nbytes())

    def recount(self, tensor: Tensor, kind: Kind, count: int) -> None:
        """Counts the storage of `tensor` as `count` bytes of another kind from now on."""
        storage = tensor.untyped_storage()
        held = self._held.pop(id(storage), None)
        if held is not None:
            self.now = self.now.plus(held.kind, -held.count)
        self._hold(storage, kind, count)

    def _hold(self, storage: torch.UntypedStorage, kind: Kind, count: int) -> None:
        key = id(storage)
        self._held[key] = _Held(weakref.ref(storage, partial(self._gone, key)), kind, count)
        self.now = self.now.plus(kind, count)
        if self.now.total > self.peak.total:
            self.peak = self.now

    def _gone(self, key: int, reference: weakref.ref[torch.UntypedStorage]) -> None:
        held = self._held.get(key)
        if held is not None and held.alive is reference:
            del self._held[key]
            self.now = self.now.plus(held.kind, -held.count)
