"""Signals that end a command. They raise `Interrupted`, at once or after work that must be whole."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from dreamkit.errors import DreamkitError

SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
# A cluster sends these before it takes a machine back. A user sends the others.
PREEMPTING: Final = frozenset(SIGNALS) - {signal.SIGINT, getattr(signal, "SIGHUP", None)}
# Programs such as coreutils' timeout send a signal to a process and again to its group: one request, not two.
SAME_REQUEST: Final = 0.25  # seconds
SHOW_CURSOR: Final = b"\x1b[?25h"  # a progress bar hides it


class Interrupted(KeyboardInterrupt):
    """The end of a command by the signal `number`; the exit code is 128 + `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class _Watch:
    """A handler of signals: the first one raises `Interrupted`, at once or later; the second one ends the process.

    With `is_command`, the first one ends the process while modules are imported: a library in C++ may abort at an
    exception there, and its import may hide one.
    """

    def __init__(self, is_command: bool = False) -> None:
        self.process = os.getpid()
        self.is_command = is_command
        self.is_ending = False
        self.received: int | None = None
        self.time = 0.0
        self.hints: list[str] = []  # of the `deferred` blocks that the process is in

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked process ends with its parent
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.is_ending:
            return
        now = time.monotonic()
        if self.received is not None:
            if now - self.time > SAME_REQUEST:
                _end(number)
            return
        self.time, self.received = now, number  # in this order: another signal may come between the two
        if not self.hints:
            interrupt = Interrupted(number)
            if self.is_command and _is_importing(frame):
                if is_first_process():
                    _write(f"dreamkit: {interrupt}\n".encode())
                _end(number)
            raise interrupt
        if self.hints[-1] and is_first_process():
            name = signal.Signals(number).name
            _write(f"dreamkit: {name}: {self.hints[-1]}; a second signal ends at once\n".encode())

    def due(self, earlier: int | None) -> Interrupted | None:
        """Return the interrupt that a block must raise at its end, or None; `earlier` was received before the block."""
        if self.received is None or earlier is not None or self.hints:
            return None
        return Interrupted(self.received)


_watch: _Watch | None = None


@contextmanager
def watch(is_command: bool = False) -> Iterator[None]:
    """Raise `Interrupted` in the block at a signal of `SIGNALS`, and end the process at a second one.

    In a command, the outermost block, the first one ends the process with a sentence while modules are imported.

    Signals that are ignored or have a handler of the user are left alone. Outside the main thread this does nothing.
    An interrupt that the block loses, as in a `__del__`, or turns into an error that is not the user's, is raised at
    the end. Within another such block, the handlers stay until the end of that one.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, mine = _watch, _watch or _Watch(is_command)
    earlier, before = mine.received, {} if outer else _default_handlers()
    try:
        _watch = mine
        for number in before:
            signal.signal(number, mine)
        yield
    except Exception as error:
        if isinstance(error, DreamkitError) or (interrupt := mine.due(earlier)) is None:
            raise
        for note in getattr(error, "__notes__", ()):
            interrupt.add_note(note)
        raise interrupt from error
    finally:
        mine.hints.append("")  # a signal waits until all handlers are those of before
        _watch = outer
        for number, handler in reversed(before.items()):  # SIGINT last: its default raises
            signal.signal(number, handler)
        mine.hints.pop()
    if (interrupt := mine.due(earlier)) is not None:
        raise interrupt


@contextmanager
def deferred(hint: str = "") -> Iterator[None]:
    """Let a signal wait until the end of the block, which may look for one with `pending`.

    `hint` is printed when the signal comes: what the block does before it ends.
    """
    with watch():
        mine = _watch
        if mine is None:
            yield
            return
        mine.hints.append(hint)
        try:
            yield
        finally:
            mine.hints.pop()


def pending() -> Interrupted | None:
    """Return the interrupt that waits for the end of a `deferred` block, or None."""
    return None if _watch is None or _watch.received is None else Interrupted(_watch.received)


def ignore_signals() -> None:
    """Ignore all signals from now on: another thread is ending the process, and has printed the reason."""
    if _watch is not None:
        _watch.is_ending = True


def is_first_process() -> bool:
    """Return True in the first of the processes of `torchrun`, and in a process that runs alone."""
    return os.environ.get("RANK", "0") == "0"


def _default_handlers() -> dict[int, signal.Handlers | Callable[..., object] | int | None]:
    """Return the handlers of `SIGNALS` that are neither the user's nor ignore the signal."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler in defaults}


def _is_importing(frame: FrameType | None) -> bool:
    """Return True if the frame or one that called it imports a module."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
        frame = frame.f_back
    return frame is not None


def _end(number: int) -> None:
    if os.isatty(sys.__stderr__.fileno() if sys.__stderr__ else 2):
        _write(SHOW_CURSOR)
    os._exit(128 + number)


def _write(text: bytes) -> None:
    """Write to standard error, past Python's buffers: a handler may run while these are in use."""
    with suppress(OSError):
        os.write(2, text)
