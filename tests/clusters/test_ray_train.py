"""`docs/ray_train.py` on two workers: the losses of `torchrun`, and a run that goes on after a worker was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamkit.training.resume_points import resume_points
from processes import TORCHRUN, command, wait_until

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
pytestmark = pytest.mark.full

SCRIPT = Path(__file__).parents[2] / "docs/ray_train.py"
STEPS = 40
SETTINGS = ("train.save_every=4", "train.global_batch=4", "train.log_every=1")
SECONDS = 500
# Starts a small Ray without the network, then the script: `start.py FOLDER SCRIPT ARGUMENTS`.
START = """
import os, runpy, sys
import ray
_, folder, *sys.argv = sys.argv
ray.init(
    num_cpus=2,
    include_dashboard=False,
    object_store_memory=80_000_000,
    _node_ip_address="127.0.0.1",
    _temp_dir=folder,
)
runpy.run_path(sys.argv[0], run_name="__main__")
ray.shutdown()
"""


@pytest.fixture
def short() -> Iterator[str]:
    """A folder for Ray's sockets, whose paths have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {
        "HOME": str(tmp_path),  # Ray writes a token there
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_METRICS_EXPORT": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONWARNINGS": "default",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def losses(out: Path) -> list[list[float]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [[entry[name] for name in ("step", "lm", "denoising", "grad_norm")] for entry in entries]


def output(folder: Path) -> str:
    return (folder / "stdout").read_text() + (folder / "stderr").read_text()


def test_a_run_of_ray_train_has_the_losses_of_torchrun_and_goes_on_after_a_death(
    folder: Path, short: str
) -> None:
    out = folder / "ray"
    arguments = ("digits/stage1", out, f"train.steps={STEPS}", *SETTINGS)
    with command(short, SCRIPT, *arguments, folder=folder, code=START) as process:
        wait_until(lambda: len(resume_points(out)) > 0, process)
        (worker,) = re.findall(r"pid=(\d+)\) world_rank=1", output(folder))
        os.kill(int(worker), signal.SIGKILL)
        assert process.wait(SECONDS) == 0, output(folder)[-4000:]
    options = ("--standalone", "--nproc-per-node=2", "-m", "dreamkit", "train", "digits/stage1")
    alone = folder / "torchrun"
    subprocess.run(
        [sys.executable, "-c", TORCHRUN, *options, f"train.steps={STEPS}", *SETTINGS, "--out", str(alone)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=SECONDS,
    )
    assert losses(out) == losses(alone)
    assert (out / "checkpoint").is_dir()
    # whoever sees the death first ends the other process: dreamkit there, or Ray
    assert re.search(
        r"the process of rank 1 .* was killed by SIGKILL|A worker died or was killed", output(folder)
    )
