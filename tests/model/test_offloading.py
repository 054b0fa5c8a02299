"""Offloaded parts: the same output to the bit as with all parts on the device, and one part there at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from dreamkit.model.offloading import offload, stop_offloading
from dreamkit.recipe.sections import WITH_SOURCE
from processes import SECONDS

# not imported: its device stays in the process, and torch's fake devices would then be initialised
RUNS = Path(__file__).parents[1] / "helpers" / "offloaded_runs.py"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    command = [sys.executable, str(RUNS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS)
    assert result.returncode == 0, result.stderr[-4000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offloaded_output_is_equal_to_the_bit(dtype: str, results: dict[str, Any]) -> None:
    result = results[dtype]
    assert {*map(tuple, result["places"].values())} == {
        ("privateuseone",)
    }  # without --offload, all are there
    assert result["is equal"]
    assert result["is equal after offloading"] and result["moves after offloading"] == 0
    assert result["texts on the host"] or dtype == "bfloat16"  # kernels may round in another order


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_part_comes_when_it_is_used_and_leaves_when_another_comes(
    dtype: str, results: dict[str, Any]
) -> None:
    result = results[dtype]
    assert {*result["moves"]} == {*WITH_SOURCE} == {*result["together"]}  # never two of them
    assert all(first != second for first, second in pairwise(result["moves"]))
    # reading the prompt's image, its text, drawing, reading back, and writing on, in each way to generate
    assert len(result["moves"]) < 20


def test_a_part_that_is_there_is_not_moved_again() -> None:
    model = tiny.model().float()
    parts = {name: model.parts()[name] for name in WITH_SOURCE}
    turns = offload(parts, torch.device("cpu"))
    ids = torch.tensor([[1, 2, 3]])
    assert turns.moves == 0 and turns.present is None
    hidden = model.language_model.final_norm(model.language_model.embed(ids))
    model.language_model.logits(hidden)
    assert turns.moves == 1 and turns.present is model.language_model
    pixels = model.vision_encoder.preprocess([tiny.picture(0)])
    model.vision_encoder(pixels)  # as a module is called
    assert turns.moves == 2 and turns.present is model.vision_encoder
    stop_offloading(parts)
    model.language_model.embed(ids)
    assert turns.moves == 2
    assert not [
        name for part in parts.values() for name in vars(part) if name in ("embed", "forward", "decode")
    ]
