"""Work in a process of its own: what it sends comes as it is sent, and what does not end is killed."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from dreamkit.errors import DreamkitError

CONTEXT = multiprocessing.get_context("spawn")  # what used CUDA cannot be forked
ENDING = 10.0  # seconds that a process whose work is over is waited for

Send = Callable[[Any], None]


class Broken(Exception):
    """The work raised an error, its process died, or it was silent for too long; the message says which."""


class Stopped(Exception):
    """The time was up."""


def sent(work: Callable[..., None], *arguments: Any, until: float, silence: float) -> Iterator[Any]:
    """What `work(send, *arguments)` sends, until the time `until` of the monotonic clock.

    Raises:
        Broken: also where nothing was sent for `silence` seconds.
        Stopped: the time was up.
    """
    receiving, sending = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_work, args=(sending, work, arguments))
    process.start()
    sending.close()  # so that its end is noticed here when the process dies
    try:
        while True:
            left = until - time.monotonic()
            if not receiving.poll(max(0.0, min(left, silence))):
                raise Stopped if left < silence else Broken(f"killed: nothing came for {silence:g} s")
            try:
                message, is_last = receiving.recv()
            except EOFError:
                process.join(ENDING)
                raise Broken(f"its process died with exit code {process.exitcode}") from None
            if not is_last:
                yield message
            elif message:
                raise Broken(message)
            else:
                process.join(ENDING)
                return
    finally:
        process.kill()
        process.join(ENDING)
        receiving.close()


def _work(sending: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """The last message is the error, or none."""
    problem = ""
    try:
        work(lambda message: sending.send((message, False)), *arguments)
    except DreamkitError as error:
        problem = str(error)
    except Exception as error:
        traceback.print_exc()
        problem = said(error)
    sending.send((problem, True))


def said(error: Exception) -> str:
    """The error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
