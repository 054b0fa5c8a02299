"""Layout and dtypes of the tensors that kernels read and write."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_stride_rows(table: Tensor) -> Tensor:
    """Return the table, or a copy of it, with the elements of each row adjacent in memory."""
    return table if table.stride(-1) == 1 else table.contiguous()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which numbers of `dtype` are summed: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
