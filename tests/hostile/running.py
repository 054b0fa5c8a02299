"""Bounded runs of `dreamkit` in this process."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

from dreamkit.cli import main

SECONDS = 20.0  # of computation; a command on tiny parts takes less than one
WAITING = 120.0  # of any time: a command that waits computes nothing
BYTES = 3 * 2**30  # beyond what the process has


class Outcome(NamedTuple):
    """Exit code (None: an exception came out), standard output, standard error, and the traceback."""

    code: int | None
    out: str
    err: str
    trace: str = ""


class Overtime(BaseException):
    """A command that takes too long. No handler of errors catches it."""


def run(*arguments: str) -> Outcome:
    """Run `dreamkit ARGUMENTS`, with bounds on time and memory."""
    code, trace = None, ""
    with (
        mock.patch.object(sys, "argv", ["dreamkit", *arguments]),
        mock.patch.dict(os.environ),
        mock.patch("torch.cuda.is_available", return_value=False),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # a process prints them
        try:
            with _bounded():
                main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except (Exception, Overtime):
            trace = traceback.format_exc()
    return Outcome(code, out.getvalue(), err.getvalue(), trace)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Overtime(f"more than {SECONDS:g} s of computation or {WAITING:g} s of any time")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for number, handler in handlers.items():
            signal.signal(number, handler)
