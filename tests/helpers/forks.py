"""Forks of this process that work together as the processes of `torchrun` do, without their imports."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 300  # of one start, if others share the cores
LAUNCHER = 10  # seconds until it kills the other processes


@dataclass
class Ended:
    """Processes that have ended.

    Attributes:
        codes: their exit codes.
        was_killed: flag: one was killed before its end.
        is_waiting: flag: the others were killed, too, `LAUNCHER` seconds later.
        seconds: from the kill to the end of the others.
    """

    codes: list[int]
    was_killed: bool = False
    is_waiting: bool = False
    seconds: float = 0.0


def run_forks(
    processes: int,
    work: Callable[[], object],
    output: Path,
    *,
    kill_after: float | None = None,
    victim: int = 0,
) -> Ended:
    """Do `work` in forks of this process; append what they print to the file `output`.

    Kill the fork `victim` after `kill_after` seconds.
    """
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    begin = time.monotonic()
    started = [_fork(processes, rank, port, work, output) for rank in range(processes)]
    codes: dict[int, int] = {}
    ended, killed_at = Ended([]), 0.0
    while len(codes) < processes:
        for pid in set(started) - codes.keys():
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                codes[pid] = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if kill_after is not None and now - begin > kill_after:
            ended.was_killed, killed_at = started[victim] not in codes, now
            if ended.was_killed:
                os.kill(started[victim], signal.SIGKILL)
            kill_after = None
        if ended.was_killed and now - killed_at > LAUNCHER and not ended.is_waiting:
            ended.is_waiting = True
            for pid in set(started) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        if now - begin > SECONDS:
            for pid in set(started) - codes.keys():
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"still running after {SECONDS} s: {output.read_text()[-8000:]}")
        time.sleep(0.002)
    ended.codes = [codes[pid] for pid in started]
    ended.seconds = time.monotonic() - killed_at if ended.was_killed else 0.0
    return ended


def _fork(processes: int, rank: int, port: int, work: Callable[[], object], output: Path) -> int:
    """Start one process; return its id."""
    if pid := os.fork():
        return pid
    code: int | str | None = 1
    try:
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if processes > 1:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
            numbers |= {"LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({name: str(number) for name, number in numbers.items()})
            os.environ["MASTER_ADDR"] = "localhost"
        work()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
