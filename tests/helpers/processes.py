"""Processes that tests start: two that train together, and commands that a signal ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAIN = "from dreamkit.cli import main; main()"
SECONDS = 180  # until a process must have done something, if others share the cores


def run_in_two(*script: str) -> None:
    """Run a script and its arguments in two processes under `torchrun`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONFAULTHANDLER": "1",  # a crash of a library shows where each thread was
    }
    process = subprocess.run(
        [*command, *script],
        env=os.environ | environment,
        timeout=180,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0, process.stdout[-8000:]


@contextmanager
def command(*arguments: object, folder: Path, code: str = MAIN) -> Iterator[subprocess.Popen[str]]:
    """Start `dreamkit ARGUMENTS`; a shell may have started the tests with an ignored SIGINT."""
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=out,
            stderr=err,
            text=True,
            cwd=folder,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
