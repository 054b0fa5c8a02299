"""Three processes load their slices of a checkpoint, and save them.

One launch of `sharded_models.py` runs everything for all tests; a hang ends at the timeout and fails.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sharded_models
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.storage.folders import describe_files
from processes import run_in
from saved_models import build_tiny, edit_manifest, perturb


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a launch, with what its processes read and wrote."""
    folder = tmp_path_factory.mktemp("slices")
    model = build_tiny()
    perturb(model)
    save_checkpoint(model, folder / "checkpoint")
    torch.save(model.state_dict(), folder / "model.pt")
    part, _, name = sharded_models.ROWS.partition(".")
    for kind, row in (("not finite", -1), ("cut", 0)):
        copied = Path(shutil.copytree(folder / "checkpoint", folder / kind))
        file = copied / f"{part}.safetensors"
        tensors = load_file(file)
        tensors[name] = tensors[name].clone()
        if kind == "cut":
            tensors[name] = tensors[name][1:].clone()
        else:
            tensors[name][row] = torch.nan  # in the slice of the third process
        save_file(tensors, file)
        files = {name: record for name, record in describe_files(copied).items() if name != Manifest.FILE}
        edit_manifest(copied, files=files)
    run_in(3, sharded_models.__file__, folder)
    return folder


@pytest.mark.parametrize("shape", sharded_models.SHAPES, ids=str)
def test_each_process_loads_its_slices(folder: Path, shape: tuple[int, ...]) -> None:
    expected = torch.load(folder / "model.pt")
    actual = load_file(folder / f"loaded {shape}.safetensors")
    assert actual.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("not finite", "expected finite values, got NaN"), ("cut", r"\(31, 48\) in the checkpoint, \(32, 48\)")],
)
def test_a_problem_in_one_slice_is_an_error_of_all_processes(folder: Path, name: str, message: str) -> None:
    texts = [(folder / f"{name}.{rank}.txt").read_text() for rank in range(3)]
    assert texts[0] == texts[1] == texts[2]
    _, _, key = sharded_models.ROWS.partition(".")
    assert re.search(f"{key}: {message}", texts[0])
