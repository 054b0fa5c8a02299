"""A process of `torchrun` that dies ends the others; the terminal shows which and how, and the run can be resumed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamkit.checkpoints.manifest import Manifest
from dreamkit.runs.run_paths import resume_points
from processes import SECONDS, TORCHRUN, command
from recipe_files import write_pairs_recipe

# The second process dies at a place of its run: `script.py PLACE DEATH dreamkit's arguments`.
SCRIPT = """
import itertools, os, signal, sys

place, death = sys.argv.pop(1), sys.argv.pop(1)

def dying(function, at):
    calls = itertools.count(1)

    def call(*arguments, **named):
        if next(calls) == at and os.environ["RANK"] == "1":
            exec(death)
        return function(*arguments, **named)

    return call

if place == "loading":
    from dreamkit.training import run
    run.build_as_stored = dying(run.build_as_stored, 1)
elif place == "a step":
    from dreamkit.model.model import DreamModel
    DreamModel.forward = dying(DreamModel.forward, 4)
elif place == "saving":
    from dreamkit.training.random_state import RandomState
    RandomState.save = dying(RandomState.save, 2)

from dreamkit.cli import main
main()
"""
TORCH = ("--standalone", "--nproc-per-node=2")


@pytest.mark.parametrize(
    ("place", "death", "reason", "points"),
    [
        ("loading", "os._exit(3)", "ended with exit code 3", []),
        ("a step", "os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL, .*", [2]),
        ("saving", "os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV", [2]),
    ],
)
def test_a_process_that_dies_ends_the_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
    place: str,
    death: str,
    reason: str,
    points: list[int],
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    (tmp_path / "script.py").write_text(SCRIPT)
    # processes that read data have copies of all connections
    recipe, out = (
        write_pairs_recipe(tmp_path, save_every=2, steps=6, global_batch=2, batch_size=None, workers=1),
        tmp_path / "out",
    )
    arguments = (tmp_path / "script.py", place, death, "train", recipe, "--out", out)
    with command(*TORCH, *arguments, folder=tmp_path, code=TORCHRUN) as process:
        assert process.wait(SECONDS) == 1
    ours, _, of_torchrun = (tmp_path / "stderr").read_text().partition("torch/distributed/elastic/")
    # torchrun may reap the dead process before another one has looked
    how = f"({reason}|ended without a message: it was killed, or crashed)"
    hint = (
        f"the last resume point is {out}/checkpoints/step-2; continue with --resume"
        if points
        else "there is no"
    )
    pattern = rf"^dreamkit: the process of rank 1 \(pid \d+ on .+\) {how}; {re.escape(hint)}"
    assert re.search(pattern, ours, re.MULTILINE), ours
    assert "Traceback" not in ours and "gloo" not in ours + of_torchrun
    assert not re.search(r"^\[rank|^dreamkit: ", of_torchrun, re.MULTILINE)
    assert "rank      : 1" in of_torchrun.partition("Root Cause")[2]
    assert [int(point.name[5:]) for point in resume_points(out)] == points
    for point in resume_points(out):
        Manifest.read(point)  # which compares all files
    if points:  # one process goes on
        code, *_ = run("train", recipe, "--out", out, "--resume")
        assert code == 0 and (out / "checkpoint").is_dir()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "train.global_batch=1",
            "expected at most 1 process, one for each document of an update, got 2; start",
        ),
        ("train.stepz=1", "the recipe has 1 problem:\n  command line: train.stepz: unknown key"),
    ],
    ids=["too few documents", "recipe"],
)
def test_an_error_of_all_processes_is_printed_once_and_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    recipe = write_pairs_recipe(tmp_path, global_batch=2, batch_size=None)
    arguments = ("-m", "dreamkit", "train", recipe, setting, "--out", tmp_path / "out")
    with command(*TORCH, *arguments, folder=tmp_path, code=TORCHRUN) as process:
        assert process.wait(SECONDS) == 1
    ours, _, of_torchrun = (tmp_path / "stderr").read_text().partition("torch/distributed/elastic/")
    assert ours.count("dreamkit: ") == 1 and f"dreamkit: {message}" in ours and "Traceback" not in ours
    assert not re.search(r"^\[rank|^dreamkit: ", of_torchrun, re.MULTILINE)
    assert "exitcode  : 2" in of_torchrun
    assert not (tmp_path / "out").exists()


def test_an_error_of_one_process_before_it_trains_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may lack the recipe."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    script = "import os, sys\nif os.environ['RANK'] == '1': sys.argv[2] = 'missing.yaml'\n"
    (tmp_path / "script.py").write_text(f"{script}from dreamkit.cli import main\nmain()\n")
    recipe = write_pairs_recipe(tmp_path, global_batch=2, batch_size=None)
    arguments = (tmp_path / "script.py", "train", recipe, "--out", tmp_path / "out")
    with command(*TORCH, *arguments, folder=tmp_path, code=TORCHRUN) as process:
        assert process.wait(SECONDS) == 1
    ours, _, of_torchrun = (tmp_path / "stderr").read_text().partition("torch/distributed/elastic/")
    assert ours.count("dreamkit: ") == 1 and "dreamkit: rank 1: " in ours and "missing.yaml" in ours
    assert "exitcode  : 2" in of_torchrun
    assert not (tmp_path / "out").exists()
