"""The processes of a run watch each other: one that dies or fails ends all, and one of them prints the reason.

The first process has a TCP connection to each other one. The kernel closes those of a process that dies, at once and
whatever the main threads are doing: they may wait in a collective operation for the dead one. Probes of the kernel
detect a machine that is lost. A process that has a reason of its own to end sends it before. A collective operation
that fails in another process is a consequence, which is not printed. This module loads no torch.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from dreamkit.errors import DreamkitError, TrainingError
from dreamkit.interrupts import SHOW_CURSOR, Interrupted, deferred, ignore_signals

CONNECTING: Final = 60.0  # seconds for all connections
GREETING: Final = 5.0  # seconds for the first message of one
# A process that raises waits so long for the others to raise, too. Those that do not wait for it somewhere.
GRACE: Final = 10.0
# The others stay so long after a reason was printed: `torchrun` names the first process that it finds ended.
PAUSE: Final = 1.0
DEATH: Final = 1  # exit code of processes that another one's death ends
# Probes of a silent connection begin after 10 s; one without an answer for 40 s is closed.
_PROBES: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 40_000}
_MOST_BYTES: Final = 10_000  # of a message

_prints_errors: bool | None = None  # None: the processes have not been connected
_prefix = ""
_is_watching = False  # flag: the process is in a block of `watching`
_sockets: set[socket.socket] = set()


def error_prefix() -> str | None:
    """Return what this process prints before its error, or None if another process prints the reason."""
    if _prints_errors is None:
        is_first = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"  # of each machine
        return "" if is_first else None
    return _prefix if _prints_errors else None


def wait_for_error() -> None:
    """Let another process print the reason, before this one ends: `torchrun` then ends all, at once."""
    time.sleep(GRACE if _prints_errors is None else PAUSE)


def is_consequence() -> bool:
    """Return True if another process prints the reason why this one failed."""
    return _prints_errors is False


@contextmanager
def watching(
    rank: int, processes: int, share: Callable[[Any], Any], hint: Callable[[], str]
) -> Iterator[None]:
    """Watch the other processes of a run in the block, which every process must enter. A block within one does nothing.

    The death of one ends the others with exit code `DEATH`, and a sentence with `hint()` on standard error. If the
    block raises in some processes only, the others end, too. Processes that all leave the block go on.

    Args:
        rank: number of this process.
        processes: number of all processes.
        share: function that returns the value of the first process in all.
        hint: function that returns how to continue after a death.

    Raises:
        TrainingError: the processes cannot be connected.
    """
    global _prints_errors, _prefix, _is_watching
    if processes == 1 or _is_watching:
        yield
        return
    with ExitStack() as stack:
        links = _connect(rank, processes, share, stack)
        watch = _Watch(rank, links, hint)
        _prints_errors, _prefix = True, "" if rank == 0 else f"rank {rank}: "
        threading.Thread(target=watch.run, name="peers", daemon=True).start()
        _is_watching = True
        stack.callback(_end_watching)
        try:
            yield
        except BaseException as error:
            with deferred():  # torchrun sends SIGTERM when another process has ended
                _prints_errors = watch.leave(error)
            raise
        watch.leave(None)


def _end_watching() -> None:
    global _is_watching
    _is_watching = False


def _connect(rank: int, processes: int, share: Callable[[Any], Any], stack: ExitStack) -> dict[int, _Link]:
    """Return the connections of this process by the ranks at their other ends; `stack` closes them."""
    end = time.monotonic() + CONNECTING
    own = {"pid": os.getpid(), "host": socket.gethostname()}
    try:
        if rank:
            port, token = share(None)
            place = (os.environ.get("MASTER_ADDR", "localhost"), port)
            link = _Link(socket.create_connection(place, timeout=CONNECTING), stack)
            link.send(own | {"rank": rank, "token": token})
            link.process = link.expect(end)
            return {0: link}
        ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=ipv6, backlog=processes) as server:
            server.settimeout(CONNECTING)
            token = token_hex()
            share((server.getsockname()[1], token))
            links: dict[int, _Link] = {}
            while len(links) < processes - 1:
                link = _Link(server.accept()[0], stack)
                link.process = link.expect(min(end, time.monotonic() + GREETING))
                if link.process.get("token") == token:  # not another program
                    links[link.process["rank"]] = link
                    link.send(own)
            return links
    except OSError as error:
        raise TrainingError(
            f"the processes of the run cannot be connected: {error}; allow TCP connections between its machines"
        ) from error


class _Link:
    """A connection to one process, which carries JSON, a message a line.

    Attributes:
        process: `pid` and `host` of the process.
        has_left: flag: that process has left the block.
    """

    def __init__(self, connection: socket.socket, stack: ExitStack) -> None:
        self.connection = connection
        self.buffer = b""
        self.process: Mapping[str, Any] = {}
        self.has_left = False
        connection.settimeout(CONNECTING)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        _sockets.add(connection)
        stack.callback(_sockets.discard, connection)

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # the other end is closed, which its reader detects
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have come, or None at the end of the connection."""
        try:
            data = self.connection.recv(_MOST_BYTES)
        except OSError:
            return None
        if not data or len(self.buffer) > _MOST_BYTES:
            return None
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def expect(self, end: float) -> dict[str, Any]:
        """Return the first message, or an empty one for another program's."""
        with suppress(ValueError):
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if (messages := self.receive()) is None:
                    break
                if messages:
                    first, *rest = messages
                    self.buffer = b"".join(json.dumps(each).encode() + b"\n" for each in rest) + self.buffer
                    self.connection.settimeout(CONNECTING)
                    return first if isinstance(first, dict) else {}
        return {}


class _Watch:
    """The connections of this process: of the first one to all others, of another one to the first.

    Attributes:
        failed: ranks of processes that have left the block with an error, in this order.
    """

    def __init__(self, rank: int, links: dict[int, _Link], hint: Callable[[], str]) -> None:
        self.rank, self.links, self.hint = rank, links, hint
        self.lock = threading.Lock()
        self.has_left = self.has_finished = False
        self.failed: list[int] = []
        self.end_time: float | None = None
        self.code = DEATH
        self.prints = True
        self.verdict = threading.Event()
        self.is_ending = threading.Event()

    def run(self) -> None:
        """Read messages until all connections are closed."""
        with selectors.DefaultSelector() as selector:
            for rank, link in self.links.items():
                selector.register(link.connection, selectors.EVENT_READ, rank)
            while selector.get_map() or self.end_time is not None:
                left = None if self.end_time is None else max(0.0, self.end_time - time.monotonic())
                ready = selector.select(left)
                for key, _ in ready:
                    messages = self.links[key.data].receive()
                    if messages is None:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]  # a socket
                        self.lose(key.data)
                    for message in messages or ():
                        self.take(key.data, message)
                if not ready:
                    self.end_time = None
                    self.end_alone()

    def take(self, rank: int, message: Mapping[str, Any]) -> None:
        """Obey a message of the process `rank`."""
        match message:
            case {"left": code}:
                with self.lock:
                    self.links[rank].has_left = True
                    if code is None:
                        self.verdict.set()
                        return
                    self.failed.append(rank)
                    if self.has_left and self.rank:
                        self.prints = False
                        self.verdict.set()
                    elif not self.has_left and self.end_time is None:
                        self.code, self.end_time = code, time.monotonic() + GRACE
            case {"print": prints}:
                self.prints = prints
                self.verdict.set()
            case {"end": code} if not self.has_finished:
                self.end(code)

    def lose(self, rank: int) -> None:
        """End this process if the process `rank` died."""
        link = self.links[rank]
        with self.lock:
            if link.has_left or self.has_left:
                self.verdict.set()
                return
        place = f"pid {link.process.get('pid')} on {link.process.get('host')}"
        reason = f"the process of rank {rank} ({place}) {_death(link.process)}"
        with suppress(Exception):  # whatever happens to the hint, this thread must end the process
            reason = f"{reason}; {self.hint()}"
        is_speaker = self.rank in (0, 1) or os.environ.get("LOCAL_RANK") == "0"
        self.end(DEATH, reason if is_speaker else None)

    def end_alone(self) -> None:
        """End this process and those that have not left the block, as some have left it with an error."""
        with self.lock:
            if self.has_left:
                return
        for number, rank in enumerate(self.failed if self.rank == 0 else ()):
            self.links[rank].send({"print": number == 0})
        self.end(self.code)

    def end(self, code: int, reason: str | None = None) -> None:
        """End this process, and from the first one all others."""
        self.is_ending.set()
        ignore_signals()
        if reason is not None:
            _print(f"dreamkit: {reason}\n")
        for link in self.links.values() if self.rank == 0 else ():
            if not link.has_left or code == DEATH:
                link.send({"end": code})
        time.sleep(PAUSE)
        os._exit(code)

    def leave(self, error: BaseException | None) -> bool:
        """Leave the block; return True if this process prints its error."""
        if error is not None and not isinstance(error, DreamkitError):
            self.is_ending.wait(PAUSE)  # the death of another process may be the cause
        while self.is_ending.is_set():
            time.sleep(PAUSE)  # the other thread ends the process
        code = None if error is None else _exit_code(error)
        with self.lock:
            self.has_left, self.has_finished = True, error is None
            failed = [*self.failed]
        for link in self.links.values():
            link.send({"left": code})
        if self.rank == 0:
            for number, rank in enumerate(failed if error is None else ()):
                self.links[rank].send({"print": number == 0})
        elif error is not None:
            if failed:
                return False
            if not self.links[0].has_left:
                self.verdict.wait(GRACE + PAUSE)
        for link in self.links.values():
            with suppress(OSError):
                link.connection.shutdown(socket.SHUT_WR)
        while self.is_ending.is_set():
            time.sleep(PAUSE)
        return self.prints


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return 128 + error.number
    return 2 if isinstance(error, DreamkitError) else DEATH


def _death(process: Mapping[str, Any]) -> str:
    """Return how a process ended, which only its parent learns for certain: for others it is there for moments."""
    code = None
    if process.get("host") == socket.gethostname():
        with suppress(OSError, ValueError, IndexError):
            for _ in range(100):
                fields = Path(f"/proc/{process['pid']}/stat").read_text().rpartition(")")[2].split()
                if (code := int(fields[-1])) or fields[0] in "ZX":
                    break
                time.sleep(0.01)  # it is ending
    if code is None:
        return "ended without a message: it was killed, or crashed"
    if number := code & 0x7F:
        with suppress(ValueError):
            name = signal.Signals(number).name
            memory = ", as the system does if memory is short" if name == "SIGKILL" else ""
            return f"was killed by {name}{memory}"
    return f"ended with exit code {code >> 8}"


def _print(text: str) -> None:
    """Write to standard error, past Python's buffers and in place of a progress bar."""
    is_terminal = sys.__stderr__ is not None and os.isatty(2)
    with suppress(OSError):
        os.write(2, (b"\r\x1b[2K" + SHOW_CURSOR if is_terminal else b"") + text.encode(errors="replace"))


def _close_in_child() -> None:
    """Close the copies of connections in a forked process: the kernel ends a connection when all are closed."""
    for each in _sockets:
        each.close()
    _sockets.clear()


os.register_at_fork(after_in_child=_close_in_child)
