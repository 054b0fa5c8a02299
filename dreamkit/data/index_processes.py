"""Processes that share a list of items, for work that takes long."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final, TypeVar

from dreamkit.errors import DreamkitError, describe_error

T = TypeVar("T")
R = TypeVar("R")
_PATIENCE: Final = 10  # seconds for a process to clean up


def usable_processes() -> int:
    """Return the number of processes that can work at once: that of the cores this process may use.

    A process that reads data for another one may start none.
    """
    if multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    work: Callable[[T], R], items: Sequence[T], processes: int, started: Callable[[], object]
) -> Iterator[tuple[int, R]]:
    """Yield number and result of each item as it ends, computed in this process or in several others.

    `started` is called when all processes run: a thread that runs before could be forked in the middle of its work.
    The processes end with the iteration.

    Raises:
        DreamkitError: a process was killed.
        Exception: the first error of `work`.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        started()
        yield from enumerate(map(work, items))
        return
    context = multiprocessing.get_context()
    following = context.Value("q", 0)
    workers: dict[Any, Any] = {}
    try:
        for _ in range(processes):
            receiver, writer = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(work, items, following, writer), daemon=True)
            process.start()
            writer.close()  # now the end of the process is the end of the pipe
            workers[receiver] = process
        started()
        active = set(workers)
        while active:
            for ready in wait(list(active)):
                reader: Any = ready
                try:
                    message = reader.recv()
                except EOFError:
                    workers[reader].join()
                    raise _killed(workers[reader].exitcode) from None
                if message is None:
                    active.remove(reader)
                    continue
                number, result, error = message
                if error is not None:
                    raise error
                yield number, result
    finally:
        for process in workers.values():
            process.terminate()
        for each, process in workers.items():
            process.join(_PATIENCE)
            process.kill()
            process.join()
            each.close()


def _work(work: Callable[[T], R], items: Sequence[T], following: Any, writer: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the main process ends this one
    signal.signal(signal.SIGTERM, _leave)
    parent = os.getppid()
    while os.getppid() == parent:  # another one, if the main process was killed
        with following.get_lock():
            number = following.value
            following.value += 1
        if number >= len(items):
            writer.send(None)
            return
        try:
            message = number, work(items[number]), None
        except Exception as error:
            writer.send((number, None, _portable(error)))
            return
        writer.send(message)


def _leave(number: int, _: object) -> None:
    """End this process after the cleaning up of its work, such as a file in progress."""
    sys.exit(128 + number)


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(describe_error(error))
    return error


def _killed(code: int | None) -> DreamkitError:
    name = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return DreamkitError(
        f"a process that indexes data ended {name}, as a system does that is out of memory; start again: what is "
        "indexed stays"
    )
