"""Fused computations, each with a plain PyTorch reference that runs wherever Triton cannot.

Each folder has a `reference`, Triton code that computes the same in fewer launches, and an operator that chooses
between them. Triton needs a C compiler, and its kernels here need a GPU as new as an A100. The environment variable
`DREAMKIT_KERNELS=0` (or `off`) selects the references everywhere, `with disabled():` only inside the block.
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

from dreamkit.errors import DreamkitError, excerpt

# Triton compiles the code that launches its kernels with a C compiler.
HAS_TRITON: Final = find_spec("triton") is not None and any(
    map(which, (os.environ.get("CC", "gcc"), "clang"))
)
SWITCH: Final = "DREAMKIT_KERNELS"  # the environment variable
ON, OFF = ("1", "on", "true"), ("0", "off", "false")  # its values, in lower or upper case
Output = TypeVar("Output")


def _parse_switch(value: str) -> bool:
    if value.lower() not in ("", *ON, *OFF):
        raise DreamkitError(f"{SWITCH}: expected 0 (fused kernels off) or 1 (on), got '{excerpt(value)}'")
    return value.lower() not in OFF


_enabled = _parse_switch(os.environ.get(SWITCH, ""))


def enabled() -> bool:
    """Return True if fused kernels are switched on here and now."""
    return _enabled


def usable(tensor: Tensor) -> bool:
    """Return True if Triton kernels are switched on and can run on the device of `tensor`."""
    if not (_enabled and HAS_TRITON and tensor.is_cuda):
        return False
    from dreamkit.kernels.capability import is_recent

    return is_recent(tensor.get_device())


def kernel_status(device: torch.device) -> str:
    """Return "fused kernels: on" for a CUDA `device` of this machine, or "off" with the reason."""
    if usable(torch.empty(0, device=device)):
        return "fused kernels: on"
    if not _enabled:
        return f"fused kernels: off, switched off by {SWITCH}"
    if not HAS_TRITON:
        return "fused kernels: off, Triton or a C compiler is missing"
    from dreamkit.kernels.capability import LEAST_CAPABILITY

    capability = ".".join(map(str, LEAST_CAPABILITY))
    return f"fused kernels: off, they need a GPU of compute capability {capability} or newer"


@contextmanager
def disabled() -> Iterator[None]:
    """Compute everything inside the block with the references; run the backward pass inside it too."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def on_its_device(compute: Callable[..., Output]) -> Callable[..., Output]:
    """Run `compute` with its first argument's device as the current one, on which Triton launches kernels."""

    @wraps(compute)
    def on_device(first: Tensor, *args: Any, **kwargs: Any) -> Output:
        with torch.cuda.device_of(first):
            return compute(first, *args, **kwargs)

    return on_device
