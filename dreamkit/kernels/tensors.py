"""What kernels ask of the tensors they are given."""

from __future__ import annotations

import torch
from torch import Tensor


def by_rows(table: Tensor) -> Tensor:
    """The table with its columns side by side."""
    return table if table.stride(-1) == 1 else table.contiguous()


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums of numbers of `dtype` are in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
