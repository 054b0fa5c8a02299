"""Fused computations, each with a plain PyTorch reference beside it that is used wherever Triton cannot run.

A folder each: `reference` is what is computed, the Triton code does the same in fewer launches, and the operator
chooses between them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from torch import Tensor

HAS_TRITON: Final = find_spec("triton") is not None


def usable(tensor: Tensor) -> bool:
    """Whether Triton kernels can run on what `tensor` lies on."""
    return HAS_TRITON and tensor.is_cuda
