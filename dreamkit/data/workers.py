"""The processes that read data: their errors, and signals that they leave to the main process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dreamkit.errors import DreamkitError
from dreamkit.interrupts import SIGNALS


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


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise a user error of a worker process with its own message, without torch's text and traceback around it."""
    try:
        yield
    except DreamkitError as error:
        kind, text = type(error), str(error)
        if not text.startswith(f"Caught {kind.__name__} in DataLoader worker"):
            raise
        _, _, message = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        raise kind(message.removesuffix("\n")) from None
