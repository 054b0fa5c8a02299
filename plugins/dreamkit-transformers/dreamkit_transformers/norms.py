"""What a norm does, found out by trying it: names of classes and attributes say too little.

D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WIDE, NARROW = 1e3, 1e-3  # inputs beside which eps is nothing, and inputs it is large beside


@contextmanager
def on_cpu() -> Iterator[None]:
    """Computes there also while a model is made on the meta device."""
    with torch.device("cpu"), torch.no_grad():
        yield


class RMSNorm(NamedTuple):
    """hidden / rms(hidden, eps) * (offset + weight)."""

    eps: float
    offset: float


@on_cpu()
def is_norm(module: nn.Module, dim: int) -> bool:
    """Whether a module gives rows (D,) the same whatever their scale, each row for itself."""
    copied = _copy(module)
    if copied is None:
        return False
    rows = noise(3, dim)
    try:
        wide, wider = copied(WIDE * rows), copied(2 * WIDE * rows)
        alone = copied(WIDE * rows[1])
    except Exception:  # it takes something else than rows
        return False
    return (
        isinstance(wide, Tensor)
        and wide.shape == rows.shape
        and torch.allclose(wide, wider, atol=1e-4, rtol=1e-3)
        and torch.allclose(wide[1], alone, atol=1e-4, rtol=1e-3)
        and not torch.allclose(wide, wide[:1].expand_as(wide), atol=1e-3)
    )


@on_cpu()
def as_rms_norm(module: nn.Module) -> RMSNorm | None:
    """The eps and offset of a norm with one weight a channel, where it is an RMS norm; None otherwise."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or getattr(module, "bias", None) is not None:
        return None
    copied: Any = _copy(module)
    if copied is None:
        return None
    dim = len(weight)
    random = noise(1, dim)[0]
    copied.weight.copy_(random)
    level = torch.ones(dim)
    gain = copied(WIDE * level)
    offset = float((gain - random).mean().round())
    small = (copied(NARROW * level) / gain).median()
    eps = _named(module, NARROW**2 * (float(small) ** -2 - 1)) if small > 0 else math.nan
    rows = torch.cat([noise(4, dim), NARROW * noise(4, dim)])
    by_hand = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps) * (offset + random)
    if not torch.allclose(copied(rows), by_hand, atol=1e-4, rtol=1e-3):
        return None
    return RMSNorm(eps, offset)


def _copy(module: nn.Module) -> nn.Module | None:
    """A copy in float32 on the CPU, wherever the module is; None where it is too large to be a norm."""
    if sum(parameter.numel() for parameter in module.parameters()) > 2 * 10**6:
        return None
    copied = copy.deepcopy(module).to_empty(device="cpu").float().eval().requires_grad_(False)
    for tensor in copied.parameters():
        tensor.copy_(1 + 0.1 * noise(*tensor.shape))
    return copied


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), device="cpu")


def _named(module: nn.Module, measured: float) -> float:
    """The number of the module's own that was measured, free of rounding."""
    own = [value for value in vars(module).values() if isinstance(value, float)]
    return next((value for value in own if math.isclose(value, measured, rel_tol=0.02)), measured)
