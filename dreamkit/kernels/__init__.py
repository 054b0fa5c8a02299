"""Fused computations, each with a plain PyTorch reference beside it that is used wherever Triton cannot run.

A folder each: `reference` is what is computed, the Triton code does the same in fewer launches, and the operator
chooses between them. The environment variable `DREAMKIT_KERNELS=0` (or `off`) has the reference everywhere, and so has
`with disabled():`, for what is computed inside it. Triton needs a C compiler, and here a GPU as new as an A100.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from shutil import which
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from dreamkit.errors import DreamkitError

# Triton builds what launches its kernels by a C compiler.
HAS_TRITON: Final = find_spec("triton") is not None and any(
    map(which, (os.environ.get("CC", "gcc"), "clang"))
)
LEAST_CAPABILITY: Final = (8, 0)  # of a GPU (A100) that has tensor cores for bfloat16
SWITCH: Final = "DREAMKIT_KERNELS"  # the environment variable
ON, OFF = ("1", "on", "true"), ("0", "off", "false")  # what it may say, in any case
Computed = TypeVar("Computed")


def _wanted(said: str) -> bool:
    if said.lower() not in ("", *ON, *OFF):
        raise DreamkitError(f"{SWITCH} is '{said}'; set it to 0, which switches fused kernels off, or to 1")
    return said.lower() not in OFF


_enabled = _wanted(os.environ.get(SWITCH, ""))


def enabled() -> bool:
    """Whether fused paths are wanted, here and now."""
    return _enabled


def usable(tensor: Tensor) -> bool:
    """Whether Triton kernels are wanted, and can run on what `tensor` lies on."""
    return _enabled and HAS_TRITON and tensor.is_cuda and _is_recent(tensor.get_device())


def told(device: torch.device) -> str:
    """Whether kernels are used on a CUDA `device` of this machine, and why where they are not."""
    if usable(torch.empty(0, device=device)):
        return "fused kernels: on"
    if not _enabled:
        reason = f"{SWITCH} says so"
    elif not HAS_TRITON:
        reason = "Triton or a C compiler is missing"
    else:
        reason = f"they need a GPU of compute capability {'.'.join(map(str, LEAST_CAPABILITY))} or newer"
    return f"fused kernels: off, {reason}"


@torch.compiler.assume_constant_result  # what compiles around a kernel cannot trace the question
def _is_recent(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


@contextmanager
def disabled() -> Iterator[None]:
    """Inside it, the references compute everything; a backward pass has to be run inside it too."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def on_its_device(compute: Callable[..., Computed]) -> Callable[..., Computed]:
    """`compute` with its first argument's device as the current one, to which Triton launches its kernels."""

    @wraps(compute)
    def on_device(first: Tensor, *args: Any, **kwargs: Any) -> Computed:
        with torch.cuda.device_of(first):
            return compute(first, *args, **kwargs)

    return on_device
