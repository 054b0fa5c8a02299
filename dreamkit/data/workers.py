"""The processes that read data: their errors, their batches, and signals that they leave to the main process."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.filesize import decimal
from torch import Tensor
from torch.utils.data import get_worker_info

from dreamkit.errors import DreamkitError, TrainingError
from dreamkit.interrupts import SIGNALS

SHARED_MEMORY: Final = Path("/dev/shm")  # of Linux; 64 MB in a container of docker
DESCRIPTORS: Final = Path("/proc/self/fd")  # of Linux; a tensor in shared memory keeps one open
SPARE_DESCRIPTORS: Final = 8  # of the connection between a process that reads data and the main process
_KILLED: Final = "DataLoader worker (pid"  # raised by torch's handler of SIGCHLD, anywhere in a step
_TOO_MANY_FILES: Final = os.strerror(errno.EMFILE)
_LOST_DESCRIPTORS: Final = "items of ancdata"  # Python's error of a process that cannot receive one more


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

    torch would move it in a thread, which loses errors: the main process would wait for the batch forever. That thread
    also duplicates the tensor's descriptor, so as many must be free as tensors wait in this process.

    Raises:
        TrainingError: too little shared memory, or too many open files.
    """
    if get_worker_info() is None:
        return tensor
    try:
        shared = tensor.detach().share_memory_()  # a graph cannot leave its process
    except RuntimeError as error:
        _, _, reason = str(error).rpartition(": ")
        raise _sharing_error(reason) from error
    if not _are_descriptors_free():
        raise _sharing_error(_TOO_MANY_FILES)
    return shared


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise the user error of a process that reads data with its own message, without torch's text around it.

    Raises:
        TrainingError: the process was killed, or there is no shared memory or no descriptor for its batches.
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
        if _TOO_MANY_FILES in str(error) or _LOST_DESCRIPTORS in str(error):
            raise _sharing_error(_TOO_MANY_FILES) from error
        if not str(error).startswith(_KILLED):
            raise
        raise TrainingError(
            "a process that reads data was killed, as a system does that is out of memory; lower train.workers"
        ) from error
    except OSError as error:
        if error.errno == errno.EMFILE or _TOO_MANY_FILES in str(error):  # a worker's error loses its number
            raise _sharing_error(_TOO_MANY_FILES) from error
        if error.errno != errno.ENOSPC or _free_bytes() >= mmap.PAGESIZE:  # a semaphore takes a page
            raise
        raise _sharing_error(os.strerror(errno.ENOSPC)) from error


def _sharing_error(reason: str) -> TrainingError:
    """Return the error of a process that cannot share a batch with the main process."""
    if _TOO_MANY_FILES in reason:
        return TrainingError(
            f"too many open files{_limit()}; raise the limit (ulimit -n 65536) or set train.workers=0"
        )
    free = f" ({SHARED_MEMORY} has {decimal(_free_bytes())} free)" if SHARED_MEMORY.is_dir() else ""
    return TrainingError(
        f"a process that reads data cannot put a batch into shared memory: {reason}{free}; enlarge it (docker run "
        "--shm-size=8g) or set train.workers=0"
    )


def _free_bytes() -> int:
    """Return the bytes that are free in the shared memory, if the system shows it as a folder."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else sys.maxsize


def _are_descriptors_free() -> bool:
    """Return True if each tensor that this process has in shared memory can get another descriptor."""
    if not DESCRIPTORS.is_dir():
        return True
    import resource  # not in Windows

    try:
        numbers = os.listdir(DESCRIPTORS)
    except OSError:  # it takes one, too
        return False
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    tensors = 0
    for number in numbers:
        with suppress(FileNotFoundError):  # closed since
            tensors += os.readlink(DESCRIPTORS / number).startswith(f"{SHARED_MEMORY}/torch_")
    return limit == resource.RLIM_INFINITY or limit - len(numbers) >= tensors + SPARE_DESCRIPTORS


def _limit() -> str:
    """Return the limit of open files in parentheses, where the system has one."""
    if not DESCRIPTORS.is_dir():
        return ""
    import resource

    return f" (the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
