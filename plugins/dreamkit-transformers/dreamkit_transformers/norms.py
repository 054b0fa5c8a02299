"""Recognize RMS norms by their outputs: names of classes and attributes differ between models.

D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

NARROW = 1e-3  # an input scale at which eps matters
MAX_PARAMETERS = 2 * 10**6  # a larger module is not a norm


@contextmanager
def on_cpu() -> Iterator[None]:
    """Compute on the CPU without gradients, also where a model is built on the meta device."""
    with torch.device("cpu"), torch.no_grad():
        yield


class RMSNorm(NamedTuple):
    """hidden / rms(hidden, eps) * (offset + weight)."""

    eps: float
    offset: float


@on_cpu()
def as_rms_norm(module: nn.Module) -> RMSNorm | None:
    """Return eps and offset of an RMS norm with a weight (D,) and no bias, or None if `module` is not one."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or getattr(module, "bias", None) is not None:
        return None
    copied = _cpu_copy(module)
    if copied is None:
        return None
    dim = len(weight)
    rows = torch.cat([noise(4, dim), NARROW * noise(4, dim)])
    weight, output = copied.get_parameter("weight"), copied(rows)
    for eps in (value for value in vars(module).values() if isinstance(value, float)):
        for offset in (0.0, 1.0):
            expected = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps) * (offset + weight)
            if torch.allclose(output, expected, atol=1e-4, rtol=1e-3):
                return RMSNorm(eps, offset)
    return None


def _cpu_copy(module: nn.Module) -> nn.Module | None:
    """Return a copy in float32 on the CPU with other weights, or None if `module` is too large to be a norm."""
    if sum(parameter.numel() for parameter in module.parameters()) > MAX_PARAMETERS:
        return None
    copied = copy.deepcopy(module).to_empty(device="cpu").float().eval().requires_grad_(False)
    for tensor in copied.parameters():
        tensor.copy_(1 + 0.1 * noise(*tensor.shape))
    return copied


def noise(*shape: int) -> Tensor:
    """Sample a normal distribution on the CPU, always the same values, without the global generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), device="cpu")
