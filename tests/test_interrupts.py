"""Signals raise at once, or after work that must be whole; a second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from dreamkit.errors import DreamkitError
from dreamkit.interrupts import SIGNALS, Interrupted, deferred, pending, watch

SCRIPT = """
import sys, time
from dreamkit.interrupts import Interrupted, deferred, watch

def work(name):
    print(name, flush=True)
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        time.sleep(0.01)
    print("whole", flush=True)

try:
    with watch():
        if sys.argv[1] == "deferred":
            with deferred("saving"):
                work("started")
        else:
            work("started")
except Interrupted as error:
    print(error, flush=True)
    sys.exit(128 + error.number)
"""


@contextmanager
def script(kind: str, seconds: float, ignored: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Run `SCRIPT` until it has started to work."""

    def set_handler() -> None:  # a shell may have started the tests with an ignored SIGINT
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=set_handler,
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_work_at_once(number: signal.Signals) -> None:
    with script("plain", 60) as process:
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == (f"interrupted by {number.name}\n", 128 + number)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_waits_for_deferred_work(number: signal.Signals) -> None:
    with script("deferred", 1) as process:
        process.send_signal(number)
        process.send_signal(number)  # of a program that sends it to a process and to its group
        out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == (f"whole\ninterrupted by {number.name}\n", 128 + number)
    assert err == f"dreamkit: {number.name}: saving; a second signal ends at once\n"


def test_a_second_signal_ends_deferred_work() -> None:
    with script("deferred", 60) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None and "a second signal ends at once" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", 128 + signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    with script("plain", 1, ignored=True) as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("whole\n", 0)


def kill(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_handlers_are_those_of_before_after_a_block() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted), watch():
        kill()
    assert [signal.getsignal(number) for number in SIGNALS] == before and pending() is None
    with watch(), watch():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """Handle SIGINT as Python does: a shell may have started the tests with an ignored one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6])
def test_a_signal_while_handlers_change_is_raised_and_the_handlers_are_those_of_before(
    monkeypatch: pytest.MonkeyPatch, default_interrupt: None, moment: int
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    change, changes = signal.signal, []

    def change_and_kill(*handler: Any) -> None:
        change(*handler)
        changes.append(handler)
        if len(changes) == moment:
            kill(signal.SIGINT)

    monkeypatch.setattr(signal, "signal", change_and_kill)
    with pytest.raises(KeyboardInterrupt), watch():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before and pending() is None


def test_a_block_in_another_one_raises_what_it_loses_and_leaves_the_handlers() -> None:
    with pytest.raises(Interrupted), watch():
        inside = [signal.getsignal(number) for number in SIGNALS]
        with pytest.raises(Interrupted), watch(), suppress(Interrupted):
            kill()
        assert [signal.getsignal(number) for number in SIGNALS] == inside
        with watch():  # it loses nothing
            pass
        kill(signal.SIGINT)  # the same request
        raise Interrupted(signal.SIGTERM)


def test_a_handler_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with watch(), deferred():
            kill()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [None, RuntimeError("a worker died"), SystemExit(0)])
def test_an_interrupt_that_was_lost_is_raised_at_the_end(error: BaseException | None) -> None:
    class Losing:
        def __del__(self) -> None:
            kill()

    def lose() -> None:
        losing = Losing()
        del losing
        if error is not None:
            raise error

    expected = SystemExit if isinstance(error, SystemExit) else Interrupted
    with pytest.raises(expected), watch():
        lose()


def test_deferred_work_after_an_interrupt_is_whole() -> None:
    finished = False
    with pytest.raises(Interrupted), watch():
        try:
            kill()
        finally:
            with deferred():
                pass
            finished = True
    assert finished


def test_an_error_of_the_user_is_more_than_an_interrupt() -> None:
    with pytest.raises(DreamkitError, match="a bad document"), watch(), deferred():
        kill()
        assert str(pending()) == "interrupted by SIGTERM"
        raise DreamkitError("a bad document")


def test_blocks_in_other_threads_change_no_handler() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    after: list[object] = []

    def work() -> None:
        with watch(), deferred():
            after.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert after == before
