"""The processes that read data: their errors, and signals that they leave to the main process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from dreamkit.errors import DreamkitError
from dreamkit.interrupts import SIGNALS

GRACE: Final = 300  # seconds in which the main process finishes a step and saves


@dataclass(frozen=True)
class WorkerStart:
    """The first call in a worker process, which then lives while the main process ends the run; `then` is called next.

    A terminal, `timeout` and a cluster send a signal to all processes of a run. A worker that ended at once would be
    an error in the main process, anywhere in the step.
    """

    then: Callable[[int], None] | None = None

    def __call__(self, number: int) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        signal.signal(
            signal.SIGTERM, lambda *_: signal.alarm(GRACE)
        )  # also torch's last resort for a stuck worker
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
