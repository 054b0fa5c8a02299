"""What is measured on, and with what: names and versions, copy bandwidth and matrix rates."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from shutil import which
from typing import Any

import torch

from dreamkit.kernels import HAS_TRITON
from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.figures import Figure

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
COPIED = 2**30  # bytes
SIDE = 8192  # of the matrices


@dataclass(frozen=True)
class Machine:
    """`bandwidth` in bytes a second, `rates` in floating-point operations a second, the size of the L2 in bytes."""

    bandwidth: Figure
    rates: dict[torch.dtype, Figure]
    l2_bytes: int
    about: dict[str, str]

    @classmethod
    def measured(cls, clock: Clock, small: bool) -> Machine:
        """Reads a large tensor once and writes it once; multiplies large square matrices."""
        device = clock.device
        source = torch.empty(COPIED >> (12 if small else 0), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        bandwidth = _per_second(clock, lambda: target.copy_(source), 2 * source.nbytes)
        side = 64 if small else SIDE
        rates = {}
        for dtype in DTYPES:
            matrix = torch.randn(side, side, device=device).to(dtype)
            out = torch.empty_like(matrix)
            rates[dtype] = _per_second(clock, _product(matrix, out), 2 * side**3)
        return cls(bandwidth, rates, _l2_bytes(device), about(device))


def about(device: torch.device) -> dict[str, str]:
    """Hardware and versions, and the day."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine() or "CPU",
        "driver": _driver() if is_cuda else "none",
        "torch": str(torch.__version__),
        "triton": _triton(),
        "CUDA": str(torch.version.cuda),
        "Python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _triton() -> str:
    """As it calls itself: distributions of it have several names."""
    if not HAS_TRITON:
        return "none"
    import triton

    return str(triton.__version__)


def _per_second(clock: Clock, call: Callable[[], Any], amount: float) -> Figure:
    """How much of `amount` a second makes."""
    first, second = ([amount / seconds for seconds in clock.samples(call)] for _ in range(2))
    return Figure.of(first, second)


def _product(matrix: torch.Tensor, out: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.mm(matrix, matrix, out=out)


def _l2_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def _driver() -> str:
    if which("nvidia-smi") is None:
        return "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[0].strip() if lines else "unknown"
