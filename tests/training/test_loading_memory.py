"""The memory of each of two processes while they load a model: little more than the slices that it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import loading_memory
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from loading_memory import LARGE, MIB, SMALL, write_llama
from processes import run_in_two


def measure(folder: Path, *cases: dict[str, Any]) -> None:
    """Load each case in two processes, and compare the growth of each one's memory with its bound."""
    (folder / loading_memory.CASES).write_text(json.dumps(cases))
    run_in_two(loading_memory.__file__, folder)
    for rank in range(2):
        for result in json.loads((folder / f"results.{rank}.json").read_text()):
            bound = 1.3 * result["slices"] + result["largest"] + 200 * MIB
            print(rank, {name: value // MIB if isinstance(value, int) else value for name, value in result.items()})
            assert result["growth"] <= bound, (rank, result)


def write_checkpoint(folder: Path, source: Path) -> None:
    """Write a checkpoint of a model with trained weights on a source."""
    recipe = recipe_from_dict(loading_memory.settings(source), Registry.load(), where="memory")
    model = build(fit(recipe, Registry.load()))
    model.set_trainable(["language_model"])
    save_checkpoint(model, folder)


def test_loading_takes_the_memory_of_the_slices(tmp_path: Path) -> None:
    # 1.3 times a slice of half, the largest tensor and 200 MiB are less than all weights
    write_llama(tmp_path / "float32", 6, torch.float32, **SMALL)
    write_llama(tmp_path / "bfloat16", 6, torch.bfloat16, **SMALL)
    measure(tmp_path, {"source": "float32"}, {"source": "bfloat16"})
