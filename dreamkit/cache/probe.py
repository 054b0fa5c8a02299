"""What a part makes of a fixed picture, in numbers: what tells it from another, whatever that is called and set to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image as PIL
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dreamkit.cache.identity import Sample

VALUES = 64  # of a tensor, that stand for it


def probe_picture() -> PIL.Image:
    """A small picture, wider than high, of all kinds of colours."""
    width, height = 48, 32
    return PIL.frombytes("RGB", (width, height), bytes(i * i // 7 % 256 for i in range(width * height * 3)))


def samples(tensors: Mapping[str, Tensor]) -> dict[str, Sample]:
    """Type, shape and some values of each tensor, from all over it."""
    return {name: _sample(tensor) for name, tensor in tensors.items()}


def _sample(tensor: Tensor) -> Sample:
    values, count = tensor.detach().flatten(), tensor.numel()
    places = [
        number * 2654435761 % count for number in range(min(VALUES, count))
    ]  # a prime: in no row or column
    return {
        "dtype": dtype_name(tensor),
        "shape": list(tensor.shape),
        "values": values[places].double().cpu().tolist(),
    }


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32, and nothing that comes out otherwise the next time."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn
    try:
        with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Weights(TorchFunctionMode):
    """Notes which parameters and buffers of a module are computed with."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._names = {
            id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        self._used: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):  # and not a device or a type
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self._names:
                    self._used[self._names[id(leaf)]] = leaf
        return made

    def sha256(self) -> str:
        """That of those that were, with their names, types and shapes."""
        hashed = hashlib.sha256()
        for name, tensor in sorted(self._used.items()):
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return hashed.hexdigest()
