"""Runs of each optimizer with averages that begin in two processes, and continue in one and then in three."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import optimizer_runs
from optimizer_runs import OPTIMIZERS
from processes import run_in

# 8-bit state is computed in float32
BOUNDS = {"adamw": 1e-8, "adafactor": 1e-8, "adamw8bit": 1e-4}

# Launches of processes that take minutes on two cores.
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `NAME/1` of uninterrupted runs in one process, `/2` in two, and `/2-1` and `/2-1-3`."""
    folder = tmp_path_factory.mktemp("optimizers")
    run_in(2, optimizer_runs.__file__, folder / "2")
    for name in OPTIMIZERS:
        optimizer_runs.train(folder / "1" / name, name)
        shutil.copytree(
            folder / "2" / name / "checkpoints/step-1", folder / "2-1" / name / "checkpoints/step-1"
        )
        optimizer_runs.train(folder / "2-1" / name, name)
        point = Path(name, "checkpoints/step-2")
        shutil.copytree(folder / "2-1" / point, folder / "2-1-3" / point)
    run_in(3, optimizer_runs.__file__, folder / "2-1-3")
    return folder


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_other_processes_continue_with_the_losses_of_one_run(folder: Path, optimizer: str) -> None:
    def losses(name: str) -> dict[int, float]:
        lines = (folder / name / optimizer / "log.jsonl").read_text().splitlines()
        return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}

    expected = {step: pytest.approx(loss, rel=BOUNDS[optimizer], abs=0) for step, loss in losses("1").items()}
    for name, steps in (("2", (1, 2, 3)), ("2-1", (2, 3)), ("2-1-3", (3,))):
        assert losses(name) == {step: expected[step] for step in steps}, name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("checkpoint", ["checkpoint", "checkpoint-ema"])
def test_other_processes_train_the_weights_and_averages_of_one_run(
    folder: Path, optimizer: str, checkpoint: str
) -> None:
    files = sorted((folder / "1" / optimizer / checkpoint).glob("*.safetensors"))
    assert files
    for file in files:
        expected = load_file(file)
        for name in ("2", "2-1", "2-1-3"):
            actual = load_file(folder / name / optimizer / checkpoint / file.name)
            for key, tensor in expected.items():
                torch.testing.assert_close(actual[key], tensor, rtol=0, atol=20 * BOUNDS[optimizer])
