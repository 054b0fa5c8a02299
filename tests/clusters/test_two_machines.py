"""Two launches of `torchrun` act as two machines: what one of them suffers ends both, and the run can be resumed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dreamkit.training.resume_points import resume_points
from dreamkit.training.resume_state import read_state
from processes import SECONDS, TORCHRUN, command, wait_until
from recipe_files import write_pairs_recipe

pytestmark = pytest.mark.full
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGUSR1"
Machines = list[subprocess.Popen[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that both machines share, with a recipe of many steps; each machine has a folder in it."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    for machine in "01":
        (tmp_path / machine).mkdir()
    write_pairs_recipe(tmp_path, save_every=2, global_batch=2, batch_size=None)
    return tmp_path


@contextmanager
def machines(folder: Path, *arguments: tuple[str, ...]) -> Iterator[Machines]:
    """Start `dreamkit train ARGUMENTS` in one process on each machine, in its own folder."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=two")
    options = ("--nnodes=2", "--nproc-per-node=1", *rendezvous, f"--signals-to-handle={SIGNALS}")
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                command(
                    *options, "-m", "dreamkit", "train", *each, folder=folder / str(number), code=TORCHRUN
                )
            )
            for number, each in enumerate(arguments)
        ]


def messages(folder: Path) -> list[str]:
    """Return dreamkit's own lines from both machines."""
    texts = [(folder / machine / "stderr").read_text() for machine in "01"]
    return re.findall(r"^dreamkit: .*", "\n".join(texts), re.MULTILINE)


def processes_of(torchrun: subprocess.Popen[str]) -> list[int]:
    return [*map(int, Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split())]


def has_saved(out: Path) -> Callable[[], bool]:
    return lambda: len(resume_points(out)) > 0


def test_a_machine_that_is_lost_ends_the_other_and_one_goes_on_alone(
    folder: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    out = folder / "out"
    arguments = (str(folder / "tiny.yaml"), "--out", str(out))
    with machines(folder, arguments, arguments) as (first, second):
        wait_until(has_saved(out), first)
        for each in (
            *processes_of(second),
            second.pid,
        ):  # torchrun's end alone would be a SIGTERM for its processes
            os.kill(each, signal.SIGKILL)
        assert first.wait(SECONDS) == 1
    (line,) = messages(folder)
    assert re.match(
        r"dreamkit: the process of rank [01] .*; the last resume point is .*/out/checkpoints/", line
    )
    steps = read_state(resume_points(out)[-1]).step + 2
    code, *_ = run("train", "--out", out, "--resume", f"train.steps={steps}")
    assert code == 0 and (out / "checkpoint").is_dir()


def test_a_signal_of_the_cluster_to_all_machines_saves_the_run(folder: Path) -> None:
    out = folder / "out"
    arguments = (str(folder / "tiny.yaml"), "--out", str(out))
    with machines(folder, arguments, arguments) as both:
        wait_until(has_saved(out), both[0])
        for machine in both:
            machine.send_signal(signal.SIGUSR1)
        assert [machine.wait(SECONDS) for machine in both] == [1, 1]
    assert [line for line in messages(folder) if "interrupted by SIGUSR1; step " in line]
    assert read_state(resume_points(out)[-1]).preempted


def test_a_machine_without_the_recipe_ends_the_other(folder: Path) -> None:
    out = folder / "out"
    with machines(
        folder,
        (str(folder / "tiny.yaml"), "--out", str(out)),
        (str(folder / "missing.yaml"), "--out", str(out)),
    ) as both:
        assert [machine.wait(SECONDS) for machine in both] == [1, 1]
    (line,) = messages(folder)
    assert re.match(r"dreamkit: (rank 1: )?the recipe has 1 problem:", line) and not out.exists()


def test_machines_that_do_not_share_the_folder_of_the_run_are_refused(folder: Path) -> None:
    arguments = (str(folder / "tiny.yaml"), "--out", "out")  # each in its own folder
    with machines(folder, arguments, arguments) as both:
        assert [machine.wait(SECONDS) for machine in both] == [1, 1]
    (line,) = messages(folder)
    assert "on a file system that all machines share" in line
    assert not [path for machine in "01" for path in (folder / machine / "out").rglob("*")]
