"""The compute capability of a GPU, for code that torch.compile traces.

A module of its own, imported only where there is a GPU: the decorator imports torch's compiler, which takes a second.
"""

from __future__ import annotations

from typing import Final

import torch

LEAST_CAPABILITY: Final = (8, 0)  # an A100, the first with tensor cores for bfloat16


@torch.compiler.assume_constant_result  # torch.compile cannot trace the call inside
def is_recent(device: int) -> bool:
    """Return True if the CUDA device with this index has at least `LEAST_CAPABILITY`."""
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
