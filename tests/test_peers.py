"""Processes that watch each other: one that dies or fails ends all, and the reason is printed once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

# Stands for a run: the rank and what each process does in the block, one Python statement.
SCRIPT = """
import os, signal, socket, sys, time
from contextlib import suppress
from pathlib import Path

from dreamkit import peers
from dreamkit.errors import DreamkitError, TrainingError
from dreamkit.interrupts import Interrupted, deferred, watch

connections = []
peers.GREETING, peers.GRACE, peers.PAUSE = 0.5, 1.0, 0.2
folder, rank, processes, statement = Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4]

def share(value):
    if rank == 0:
        (folder / "new").write_text(repr(value))
        (folder / "new").rename(folder / "value")
    while not (folder / "value").exists():
        time.sleep(0.01)
    value = eval((folder / "value").read_text())
    exec(sys.argv[5], globals(), {"port": value[0]})
    return value

def connect(port, data):
    connection = socket.create_connection(("localhost", port), 10)
    connection.sendall(data)
    connections.append(connection)

def wait_for_all():
    (folder / f"{rank} is here").touch()
    while not all((folder / f"{each} is here").exists() for each in range(processes)):
        time.sleep(0.01)

code = 0
try:
    with watch(), peers.watching(rank, processes, share, lambda: "continue with --resume"):
        wait_for_all()
        exec(statement)
    print("left", flush=True)
except (DreamkitError, Interrupted) as error:
    if (prefix := peers.error_prefix()) is not None:
        print(f"{prefix}{error}", file=sys.stderr)
    code = 128 + error.number if isinstance(error, Interrupted) else 2
except RuntimeError as error:
    if not peers.is_consequence():
        raise
    code = 1
sys.exit(code)
"""
STUCK = "time.sleep(600)"
END = 10  # seconds in which all processes must have ended
Run = Callable[..., tuple[list[int], list[str], list[str]]]


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    def run(*statements: str, before: str = "") -> tuple[list[int], list[str], list[str]]:
        """Return exit codes, standard outputs and standard errors of processes that execute one statement each.

        All execute `before` when the first one waits for connections.
        """
        tmp_path = tmp_path_factory.mktemp("run")
        (tmp_path / "script.py").write_text(SCRIPT)
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    tmp_path / "script.py",
                    tmp_path,
                    str(rank),
                    str(len(statements)),
                    statement,
                    before,
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost"},
            )
            for rank, statement in enumerate(statements)
        ]
        try:
            while not all((tmp_path / f"{rank} is here").exists() for rank in range(len(statements))):
                assert not any(process.poll() for process in started)
                time.sleep(0.01)
            # nothing reaps a process that has ended before the others have looked, as torchrun might
            time.sleep(0.5)
            out, err = zip(*(process.communicate(timeout=END) for process in started), strict=True)
        finally:
            for process in started:
                process.kill()
        return [process.returncode for process in started], list(out), list(err)

    return run


DEATHS = {
    "os.kill(os.getpid(), signal.SIGKILL)": "was killed by SIGKILL, as the system does if memory is short",
    "os.kill(os.getpid(), signal.SIGSEGV)": "was killed by SIGSEGV",
    "os._exit(3)": "ended with exit code 3",
    "os._exit(0)": "ended with exit code 0",
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("death", DEATHS)
def test_a_process_that_dies_ends_the_others_and_one_prints_the_reason(
    run: Run, death: str, place: int
) -> None:
    statements = [STUCK] * 3
    statements[place] = death
    codes, _, err = run(*statements)
    speaker = 0 if place else 1
    assert [code for rank, code in enumerate(codes) if rank != place] == [1, 1]
    assert [text for rank, text in enumerate(err) if rank != speaker] == ["", ""]
    pattern = (
        rf"dreamkit: the process of rank {place} \(pid \d+ on .+\) {DEATHS[death]}; continue with --resume\n"
    )
    assert re.fullmatch(pattern, err[speaker])


def test_the_death_of_a_process_with_a_child_is_detected(run: Run) -> None:
    """A process that reads data is a fork, which stays for seconds and has copies of all connections."""
    fork = "(os.fork() or time.sleep(30)) and os.kill(os.getpid(), signal.SIGKILL)"
    codes, _, err = run(STUCK, f"os.closerange(0, 3); {fork}")
    assert codes == [1, -signal.SIGKILL] and "rank 1" in err[0]


def test_a_failure_that_follows_from_a_death_is_not_printed(run: Run) -> None:
    """A collective operation raises when its connections close."""
    codes, _, err = run('raise RuntimeError("closed by peer")', "os._exit(3)", STUCK)
    assert codes == [1, 3, 1]
    assert err[0].count("\n") == 1 and "rank 1" in err[0] and err[1:] == ["", ""]


def test_a_signal_that_follows_from_a_death_prints_nothing(run: Run) -> None:
    """`torchrun` sends SIGTERM to the others."""
    wait = "peers.PAUSE = 1; time.sleep(0.4); os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)"
    for block in ("", 'with deferred("stopping after this step"): '):
        codes, _, err = run(block + wait, "os._exit(3)")
        assert codes == [1, 3] and err[0].count("\n") == 1 and err[1] == ""


FAILURES = {
    'raise TrainingError("no")': (2, "no"),
    "os.kill(os.getpid(), signal.SIGTERM)": (143, "interrupted by SIGTERM"),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_process_that_fails_alone_prints_its_error_and_ends_the_others(
    run: Run, failure: str, place: int
) -> None:
    statements = [STUCK] * 3
    statements[place] = failure
    codes, _, err = run(*statements)
    code, message = FAILURES[failure]
    assert codes == [code] * 3
    expected = ["", "", ""]
    expected[place] = f"rank {place}: {message}\n" if place else f"{message}\n"
    assert err == expected


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("late", range(3))
def test_an_error_of_all_processes_is_printed_by_the_first(run: Run, failure: str, late: int) -> None:
    statements = [failure] * 3
    statements[late] = f"time.sleep(0.3); {failure}"
    codes, _, err = run(*statements)
    code, message = FAILURES[failure]
    assert codes == [code] * 3 and err == [f"{message}\n", "", ""]


def test_of_several_processes_that_fail_alone_one_prints_its_error(run: Run) -> None:
    codes, _, err = run(STUCK, *['raise TrainingError("no")'] * 2)
    assert codes == [2] * 3
    assert sorted(err) in (["", "", "rank 1: no\n"], ["", "", "rank 2: no\n"])


def test_processes_that_leave_the_block_go_on(run: Run) -> None:
    codes, out, err = run("pass", "pass", "time.sleep(0.5)")
    assert (codes, out, err) == ([0] * 3, ["left\n"] * 3, [""] * 3)


def test_a_block_in_another_one_does_nothing(run: Run) -> None:
    inner = "exec('with peers.watching(rank, processes, None, None): pass')"
    codes, out, err = run(inner, inner)
    assert (codes, out, err) == ([0] * 2, ["left\n"] * 2, [""] * 2)
    codes, _, err = run(f"{inner}; {STUCK}", f"{inner}; os._exit(3)")
    assert codes == [1, 3] and "rank 1" in err[0]


def test_a_process_that_ends_later_than_the_others_is_left_alone(run: Run) -> None:
    """One that has left the block may end as it likes."""
    codes, out, _ = run("time.sleep(2)", "pass")
    assert (codes, out) == ([0, 0], ["left\n"] * 2)
    codes, out, _ = run("pass", "time.sleep(2)")
    assert (codes, out) == ([0, 0], ["left\n"] * 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"rank": 1, "token": "x"}\n',
        b"[]\n",
        b"\xff\n",
        b"{" * 20_000 + b"\n",
    ],
)
def test_another_program_that_connects_is_ignored(run: Run, data: bytes) -> None:
    codes, out, _ = run("pass", "pass", before=f"rank == 1 and connect(port, {data!r})")
    assert (codes, out) == ([0, 0], ["left\n"] * 2)
