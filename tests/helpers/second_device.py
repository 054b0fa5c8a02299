"""A second device on a machine that has only a CPU: its tensors compute as those of the CPU do, and mix with no others.

An operator on tensors of both devices is an error, as on a GPU. Only scalars of the CPU are allowed among the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend()
DEVICE = torch.device("privateuseone", 0)
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _Elsewhere(Tensor):
    """A tensor on the second device, around its values on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> _Elsewhere:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        wrapper.values = values
        return wrapper

    def tolist(self) -> Any:
        return self.values.tolist()

    def __repr__(self) -> str:
        return f"elsewhere({self.values!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `SecondDevice`")


class SecondDevice(TorchDispatchMode):
    """A block in which `DEVICE` works.

    Attributes:
        weights: the most bytes of parameters that were on the device at once; call `watch` first.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves, _ = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, _Elsewhere)]
        target = kwargs.get("device")
        is_there = bool(there) if target is None else torch.device(target).type == DEVICE.type
        if func not in _COPIES and there:
            here = [
                t for t in tensors if not isinstance(t, _Elsewhere) and t.dim() and t.device.type == "cpu"
            ]
            assert not here, f"{func}: tensors of two devices, of shapes {[tuple(t.shape) for t in tensors]}"
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        if func is torch.ops.aten.copy_.default:
            is_there = isinstance(args[0], _Elsewhere)
        plain_args, plain_kwargs = tree_map(_values, (args, kwargs))
        output = func(*plain_args, **plain_kwargs)
        known = {id(tensor.values): tensor for tensor in there}

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor) or not is_there:
                return value
            same = known.get(id(value))  # of an operator in place
            return _Elsewhere(value) if same is None else same

        return tree_map(wrapped, output)


def _values(value: Any) -> Any:
    return value.values if isinstance(value, _Elsewhere) else value


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **options: Any) -> Tensor:
    return _Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: _Elsewhere, non_blocking: bool = False) -> Tensor:
    target.values.copy_(source)
    return target


# `torch.tensor` enters no mode
_KERNELS = torch.library.Library("aten", "IMPL")
_KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")
_KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
