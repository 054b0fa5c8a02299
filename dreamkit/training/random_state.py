"""The state of the global generators of random numbers, which dropout and parts of plug-ins use.

Other random numbers of a training are in its batches: they have no state.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_pt_utils import safe_globals

from dreamkit.distributed import rank, world_size
from dreamkit.errors import CheckpointError
from dreamkit.storage.tensor_files import read_pickle


class RandomState:
    """The state of Python's, NumPy's and torch's generators now, of the CPU and of this process's CUDA device."""

    def __init__(self) -> None:
        self.python: Any = random.getstate()
        self.numpy: Any = np.random.get_state()
        self.cpu = torch.random.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Set the generators to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.random.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(self.cuda)

    def save(self, folder: Path) -> Path:
        """Write the state into this process's file in `folder`; return its path."""
        file = _file(folder)
        with file.open("wb") as opened:  # a path would hide the error of the operating system
            torch.save(vars(self), opened)
        return file

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the state in this process's file in `folder`; None if there is none.

        Raises:
            CheckpointError: the file is damaged, or names code that loading would run.
        """
        if not _file(folder).is_file():
            return None
        with safe_globals():  # NumPy's types
            values = read_pickle(_file(folder), CheckpointError)
        state = cls()
        state.python, state.numpy, state.cpu = values["python"], values["numpy"], values["cpu"]
        cuda = values.get("cuda")
        # earlier releases stored the states of all devices
        state.cuda = cuda if isinstance(cuda, Tensor | None) else cuda[torch.cuda.current_device()]
        return state


def _file(folder: Path) -> Path:
    """Return the file of this process in the folder of a training's state."""
    return folder / ("rng_state.pth" if world_size() == 1 else f"rng_state_{rank()}.pth")
