"""Processes that tests start: those that train together, and commands that a signal ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAIN = "from dreamkit.cli import main; main()"
TORCHRUN = "from torch.distributed.run import main; main()"
SECONDS = 180  # until a process must have done something, if others share the cores


# A thread in a trace of faulthandler whose last call was a collective operation, or a thread of gloo by its name.
_IN_GLOO = re.compile(
    r"^(?:Current thread|Thread) .*:\n(?:  File \".*/torch/_ops\.py\", line \d+ in .*\n)*"
    r"  File \".*/torch/distributed/.*\", line \d+ in |pt_gloo",
    re.MULTILINE,
)


def run_in_two(script: str, folder: Path) -> None:
    """Run `script FOLDER` in two processes under `torchrun`; see `run_in`."""
    run_in(2, script, folder)


def run_in(processes: int, script: str, folder: Path) -> None:
    """Run `script FOLDER` in this number of processes under `torchrun`.

    A crash inside gloo is a warning with the output, and is tried again in an empty folder: torch 2.14 frees a buffer
    of gloo twice, about once in some hundred thousand gathers (`gloo::transport::tcp::UnboundBuffer`).
    """
    exists = folder.exists()
    process = _torchrun(processes, script, folder)
    if crashed_in_gloo(process.stdout):
        # pyproject.toml exempts this warning, by its first words, from those that are errors
        warnings.warn(f"a crash inside gloo is tried again: {process.stdout[-8000:]}", stacklevel=2)
        shutil.rmtree(folder, ignore_errors=True)
        if exists:
            folder.mkdir()
        process = _torchrun(processes, script, folder)
    assert process.returncode == 0, process.stdout[-8000:]


def crashed_in_gloo(output: str) -> bool:
    """Return True if a crash ended a process of `torchrun` during a collective operation, by the output."""
    is_crash = any(f"({name})" in output for name in ("SIGSEGV", "SIGABRT"))
    return is_crash and _IN_GLOO.search(output) is not None


def _torchrun(processes: int, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONFAULTHANDLER": "1",  # a crash shows where each thread was
    }
    return subprocess.run(
        [*torchrun, f"--nproc-per-node={processes}", script, str(folder)],
        env=os.environ | environment,
        timeout=1200,  # a hang; three processes on two slow cores take minutes
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


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


def process_of_rank(rank: int, torchrun: subprocess.Popen[str]) -> int:
    """Return the id of the process with this rank that `torchrun` has started."""
    for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("no such process")
