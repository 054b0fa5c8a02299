"""The job script of the documentation queues a run again if, and only if, a signal of the cluster ended it.

Stubs stand for the commands of SLURM, of which there is none here.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs/job.sh"
# Stands for torchrun: trains until SIGUSR1, then saves and ends with torchrun's own exit code; or ends at once.
TORCHRUN = """#!/usr/bin/env bash
echo "$@" >arguments
point=runs/s2/checkpoints/step-10
mkdir -p $point/trainer
trap 'echo "{\\"step\\": 10, \\"preempted\\": true}" >$point/trainer/state.json; sleep 0.3; exit 1' USR1
echo '{"step": 10, "preempted": false}' >$point/trainer/state.json
[ -z "$CODE" ] || exit "$CODE"
touch started
while true; do sleep 0.05; done
"""
# Starts the command as a task and forwards signals to it, as srun does with all but a few.
SRUN = """#!/usr/bin/env bash
while [[ $1 = --* ]]; do shift; done
"$@" &
trap 'kill -USR1 $!' USR1
wait $!
code=$?
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
exit $code
"""
SCONTROL = """#!/bin/sh
case "$1" in
show) printf 'node7\\nnode8\\n' ;;
*) echo "$@" >>queued ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    commands = {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL}
    for name, content in commands.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(folder: Path, code: str = "", turn: int = 0) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CODE": code,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_RESTART_COUNT": str(turn),
    }
    return subprocess.Popen(["bash", SCRIPT], cwd=folder, env=environment)


def signal_when_started(process: subprocess.Popen[bytes], folder: Path) -> int:
    while not (folder / "started").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    return process.wait(60)


def test_a_preempted_run_is_queued_again_and_resumed(folder: Path) -> None:
    assert signal_when_started(start(folder), folder) == 1
    assert (folder / "queued").read_text() == "requeue 7\n"
    arguments = (folder / "arguments").read_text()
    assert "--nnodes 2 " in arguments and "--rdzv-endpoint node7:29500 --rdzv-id 7-0 " in arguments
    assert "--resume" not in arguments
    assert start(folder, code="0", turn=1).wait(60) == 0
    assert (folder / "arguments").read_text().rstrip().endswith("--out runs/s2 --resume")
    assert (folder / "queued").read_text() == "requeue 7\n"


@pytest.mark.parametrize("code", ["0", "1", "2"])
def test_a_run_that_ends_by_itself_is_not_queued_again(folder: Path, code: str) -> None:
    assert start(folder, code=code).wait(60) == int(code)
    assert not (folder / "queued").exists()


def test_a_run_is_not_queued_again_for_ever(folder: Path) -> None:
    assert signal_when_started(start(folder, turn=50), folder) == 1
    assert not (folder / "queued").exists()
