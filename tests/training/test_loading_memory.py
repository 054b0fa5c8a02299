"""The memory of processes while they load a model: little more than the slices, or packed weights, that each keeps."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

import loading_memory
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from loading_memory import LARGE, MIB, SMALL, TINY, write_llama
from processes import run_in_two

CASES: list[dict[str, Any]] = [
    {"source": "float32"},
    {"source": "bfloat16"},
    {"source": "pickle"},
    {"source": "bfloat16", "init": "checkpoint"},
]


def write_sources(folder: Path, sizes: dict[str, int], layers: int, bytes_each: int) -> None:
    """Write the sources of `CASES`; each has at least this number of bytes."""
    write_llama(folder / "tiny", 1, torch.float32, **TINY)
    for name in ("float32", "bfloat16", "pickle"):
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        count = layers * torch.float32.itemsize // dtype.itemsize
        written = write_llama(folder / name, count, dtype, pickled=name == "pickle", **sizes)
        assert written >= bytes_each


def write_checkpoint(folder: Path, source: Path) -> None:
    """Write a checkpoint of a language model with trained weights."""
    recipe = recipe_from_dict(loading_memory.settings(source), Registry.load(), where="memory")
    model = build(fit(recipe, Registry.load()))
    model.set_trainable(["language_model"])
    save_checkpoint(model, folder)


def measure(folder: Path, spare: int) -> None:
    """Load each case in two processes, and compare the growth of each one's memory with its bound."""
    (folder / loading_memory.CASES).write_text(json.dumps([{"source": "tiny"}, *CASES]))
    run_in_two(loading_memory.__file__, folder)
    results = [json.loads((folder / f"results.{rank}.json").read_text()) for rank in range(2)]
    assert [len(each) for each in results] == [len(CASES)] * 2
    for result in chain.from_iterable(results):
        assert result["growth"] <= 1.3 * result["slices"] + result["largest"] + spare, result
        assert result["growth"] >= 0.9 * result["slices"], result  # something was measured


def test_loading_takes_the_memory_of_the_slices(tmp_path: Path) -> None:
    write_sources(tmp_path, SMALL, 6, 300 * MIB)
    write_checkpoint(tmp_path / "checkpoint", tmp_path / "bfloat16")
    measure(tmp_path, 20 * MIB)  # a whole copy would need more


@pytest.mark.full
def test_loading_two_gigabytes_takes_the_memory_of_the_slices(tmp_path: Path) -> None:
    write_sources(tmp_path, LARGE, 9, 2 * 10**9)
    write_checkpoint(tmp_path / "checkpoint", tmp_path / "bfloat16")
    measure(tmp_path, 200 * MIB)


def test_a_quantized_part_is_never_whole_in_memory(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny", 1, torch.float32, **TINY)
    written = write_llama(tmp_path / "bfloat16", 4, torch.bfloat16, **SMALL)
    # in a fresh process: this one may have memory that earlier tests have freed
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        kept, grown = pool.submit(loading_memory.quantized, tmp_path).result()
    whole = 2 * written  # in float32
    assert kept < 0.45 * whole
    assert 0.9 * kept < grown < kept + 60 * MIB < whole
