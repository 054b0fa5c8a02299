"""The processes that read data: their errors, their batches, and signals that they leave to the main process."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.filesize import decimal
from torch import Tensor
from torch.utils.data import get_worker_info

from dreamkit.errors import DreamkitError, TrainingError
from dreamkit.interrupts import SIGNALS

SHARED_MEMORY: Final = Path("/dev/shm")  # of Linux; 64 MB in a container of docker
_KILLED: Final = "DataLoader worker (pid"  # raised by torch's handler of SIGCHLD, anywhere in a step


@dataclass(frozen=True)
class WorkerStart:
    """The first call in a worker process, which then lives while the main process ends the run; `then` is called next.

    A terminal, `timeout` and `torchrun` send a signal to the process group of a run. A worker that ended at once would
    be an error in the main process, anywhere in the step. So it leaves the group; the main process can still end it,
    and torch ends it if the main process is gone.
    """

    then: Callable[[int], None] | None = None

    def __call__(self, number: int) -> None:
        if hasattr(os, "setpgrp"):
            os.setpgrp()
        for each in SIGNALS:
            if each != signal.SIGTERM:
                signal.signal(each, signal.SIG_IGN)
        if self.then is not None:
            self.then(number)


def in_shared_memory(tensor: Tensor) -> Tensor:
    """Return a tensor of a batch, which a process that reads data moves into shared memory.

    torch would move it in a thread, which loses errors: the main process would wait for the batch forever.

    Raises:
        TrainingError: too little shared memory, or too many open files.
    """
    if get_worker_info() is None:
        return tensor
    try:
        return tensor.detach().share_memory_()  # a graph cannot leave its process
    except RuntimeError as error:
        _, _, reason = str(error).rpartition(": ")
        raise _sharing_error(reason) from error


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise the user error of a process that reads data with its own message, without torch's text around it.

    Raises:
        TrainingError: the process was killed, or there is no shared memory for it.
    """
    try:
        yield
    except DreamkitError as error:
        kind, text = type(error), str(error)
        if not text.startswith(f"Caught {kind.__name__} in DataLoader worker"):
            raise
        _, _, message = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        raise kind(message.removesuffix("\n")) from None
    except RuntimeError as error:
        if not str(error).startswith(_KILLED):
            raise
        raise TrainingError(
            "a process that reads data was killed, as a system does that is out of memory; lower train.workers"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC or _free_bytes() >= mmap.PAGESIZE:  # a semaphore takes a page
            raise
        raise _sharing_error(os.strerror(errno.ENOSPC)) from error


def _sharing_error(reason: str) -> TrainingError:
    """Return the error of a process that cannot share a batch with the main process."""
    free = f" ({SHARED_MEMORY} has {decimal(_free_bytes())} free)" if SHARED_MEMORY.is_dir() else ""
    return TrainingError(
        f"a process that reads data cannot put a batch into shared memory: {reason}{free}; enlarge it (docker run "
        "--shm-size=8g) or set train.workers=0"
    )


def _free_bytes() -> int:
    """Return the bytes that are free in the shared memory, if the system shows it as a folder."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else sys.maxsize
