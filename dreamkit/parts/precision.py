"""Support for modules that do not work in half precision, and for whole models in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode


def keep_float32(tensors: Iterable[Tensor], change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `change`, for `nn.Module._apply`, altered to keep these `tensors` in float32 or more."""
    protected = {id(tensor) for tensor in tensors}

    def change_but_keep(tensor: Tensor) -> Tensor:
        new = change(tensor)
        is_half = new.is_floating_point() and new.dtype.itemsize < torch.float32.itemsize
        # Moves `tensor`, not `new`: `new` has already been rounded to half precision.
        return tensor.to(new.device) if is_half and id(tensor) in protected else new

    return change_but_keep


def float32_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules of `model` that fail in half precision, as the specs of the parts in it say."""
    return {
        inner
        for module in model.modules()
        for name in getattr(getattr(module, "spec", None), "float32_modules", ())
        for inner in module.get_submodule(name).modules()
    }


@contextmanager
def computing_in(precision: str, device: str) -> Iterator[None]:
    """Compute in this precision of a recipe, on this type of device."""
    with full_float64(precision == "float64"), half_precision(precision, device):
        yield


def half_precision(precision: str, device: str) -> torch.autocast:
    """Return autocast to bfloat16 on this type of device, which does nothing in another precision."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def full_float64(enabled: bool) -> Iterator[None]:
    """Compute in float64 where code names float32 or relies on the default dtype, if `enabled`.

    Parts convert to float32 for sums that are too coarse in half precision. In a model of float64, they would round.
    """
    if not enabled:
        yield
        return
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(dtype)


class _Float64(TorchFunctionMode):
    """A mode in which each function of torch gets float64 in the place of float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        def change(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        named = {name: change(value) for name, value in (kwargs or {}).items()}
        if func is Tensor.backward and len(args) == 1 and not any(named.values()):
            return self._backward(args[0])
        func = Tensor.double if func is Tensor.float else func
        return func(*map(change, args), **named)

    def _backward(self, loss: Tensor) -> None:
        """Run the backward pass in this mode: it recomputes layers.

        torch leaves a mode while it calls `__torch_function__`, and enters no mode for a gradient edge.
        """
        edge, gradient = get_gradient_edge(loss), torch.ones_like(loss)
        with self:
            torch.autograd.backward(edge, gradient)
