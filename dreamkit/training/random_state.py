"""The state of the global generators of random numbers, which dropout and parts of plug-ins use.

Other random numbers of a training are in its batches: they have no state.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class RandomState:
    """The state of Python's, NumPy's and torch's generators now, of the CPU and of every CUDA device."""

    def __init__(self) -> None:
        self.python: Any = random.getstate()
        self.numpy: Any = np.random.get_state()
        self.cpu = torch.random.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Set the generators to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.random.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
