"""Three processes load their slices of a checkpoint, and save them.

One launch of `sharded_models.py` runs everything for all tests; a hang ends at the timeout and fails.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import layouts
import sharded_models
from dreamkit.checkpoints.load import load_checkpoint, load_weights
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.merge import merge_adapters
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import CheckpointError
from dreamkit.storage.folders import describe_files
from dreamkit.training.optimizer_state import load_optimizer, optimizer_tensors
from processes import run_in
from runs import run
from saved_models import REGISTRY, assert_equal, build_tiny, edit_manifest, perturb


def set_files(folder: Path) -> None:
    """Set the files in a manifest to those that are there."""
    files = {name: record for name, record in describe_files(folder).items() if name != Manifest.FILE}
    edit_manifest(folder, files=files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a launch, with what its processes read and wrote."""
    inputs, folder = tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("slices")
    model = build_tiny()
    perturb(model)
    save_checkpoint(model, inputs / "checkpoint")
    torch.save(model.state_dict(), inputs / "model.pt")
    part, _, name = sharded_models.ROWS.partition(".")
    for kind, row in (("not finite", -1), ("cut", 0)):
        copied = Path(shutil.copytree(inputs / "checkpoint", inputs / kind))
        file = copied / f"{part}.safetensors"
        tensors = load_file(file)
        tensors[name] = tensors[name].clone()
        if kind == "cut":
            tensors[name] = tensors[name][1:].clone()
        else:
            tensors[name][row] = torch.nan  # in the slice of the third process
        save_file(tensors, file)
        set_files(copied)
    run(inputs / "straight", layouts.recipe(**sharded_models.SETTINGS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(sharded_models.INPUTS, str(inputs))  # a launch that is tried again has an empty folder
        run_in(3, sharded_models.__file__, folder)
    shutil.copy(inputs / "model.pt", folder)
    shutil.copytree(inputs / "straight", folder / "straight")
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


@pytest.fixture
def run_command(run: Any) -> Any:
    return run


@pytest.mark.parametrize("shape", sharded_models.SHAPES, ids=str)
def test_a_resume_point_in_slices_is_used_like_a_portable_checkpoint(
    folder: Path, shape: tuple[int, ...], tmp_path: Path, run_command: Any
) -> None:
    out = folder / f"run {shape}"
    point = out / "checkpoints/step-1"
    assert sorted(path.name for path in point.iterdir()) == [
        "dreamkit.json",
        "tokenizer",
        "trainer",
        *(f"weights-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
    ]
    of_process = [len(load_file(file)) for file in sorted(point.glob("*.safetensors"))]
    assert (of_process[1:] == [0, 0]) == (shape == (3, 1))  # one of the replicas writes
    manifest, portable = Manifest.read(point), Manifest.read(out / "checkpoint")
    assert (manifest.format, portable.format) == (3, 2)
    assert (manifest.parts, manifest.adapters) == (portable.parts, portable.adapters)

    model, report = load_checkpoint(point)
    expected, other = load_checkpoint(out / "checkpoint")
    assert_equal(model, expected)
    assert report.parts == other.parts
    started = build_tiny(**{"model.adapters": layouts.ADAPTERS})
    load_weights(started, point)
    assert_equal(started, expected)

    save_checkpoint(model, tmp_path / "again")
    tensor_files = [name for name in portable.files if name.endswith("adapter_model.safetensors")]
    for name in [*tensor_files, *(f"{part}.safetensors" for part in portable.parts)]:
        record = portable.files[name]
        assert Manifest.read(tmp_path / "again").files[name] == record, name
    for name, source in (("merged", point), ("expected", out / "checkpoint")):
        merge_adapters(source, tmp_path / name, REGISTRY)
    assert_equal(load_checkpoint(tmp_path / "merged")[0], load_checkpoint(tmp_path / "expected")[0])

    code, text, _ = run_command("inspect", str(point))
    assert code == 0
    assert "weights in slices of 3 processes, " in text and "every file is intact" in text


def test_a_command_generates_from_slices_what_it_does_from_whole_tensors(
    folder: Path, tmp_path: Path, run_command: Any
) -> None:
    settings = ("--max-tokens", "8", "--max-images", "0")
    outcomes = [
        run_command(
            "generate",
            folder / "run (3,)" / name,
            "say",
            *settings,
            "--out",
            tmp_path / name.replace("/", "-"),
        )
        for name in ("checkpoints/step-1", "checkpoint")
    ]
    assert outcomes[0][:2] == outcomes[1][:2] and outcomes[0][0] == 0


@pytest.mark.parametrize("shape", sharded_models.SHAPES, ids=str)
def test_one_process_reads_the_optimizer_of_three(folder: Path, shape: tuple[int, ...]) -> None:
    out = folder / f"run {shape}"
    model = build_tiny(**{"model.adapters": layouts.ADAPTERS})
    model.set_trainable(["dream_queries", "new_tokens"])
    optimizer = sharded_models.new_optimizer(model)
    load_optimizer(out / "checkpoints/step-1", 3, model, optimizer)
    actual, expected = optimizer_tensors(model, optimizer), load_file(out / "optimizer.safetensors")
    assert actual.keys() == expected.keys() and len(expected) > 30
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def edit_tensors(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors in a file of slices; the metadata stays."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    changed = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(changed, file, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {}, "missing or unknown"),
        (lambda tensors: {name: tensor[..., :1] for name, tensor in tensors.items()}, "sum of the sizes"),
        (lambda tensors: {name: tensor.to(torch.int8) for name, tensor in tensors.items()}, "int8 in "),
    ],
)
@pytest.mark.parametrize("name", ["weights", "trainer/optimizer"])
def test_damaged_slices_are_refused(
    folder: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    point = Path(shutil.copytree(folder / "run (3,)/checkpoints/step-1", tmp_path / "step-1"))
    edit_tensors(point / f"{name}-00002-of-00003.safetensors", change)
    set_files(point)
    model = build_tiny(**{"model.adapters": layouts.ADAPTERS})
    model.set_trainable(["dream_queries", "new_tokens"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        if name == "weights":
            load_weights(model, point)
        else:
            load_optimizer(point, 3, model, sharded_models.new_optimizer(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_manifest_names_the_files_of_all_processes(folder: Path, tmp_path: Path) -> None:
    point = Path(shutil.copytree(folder / "run (3,)/checkpoints/step-1", tmp_path / "step-1"))
    for processes in (4, 0, -1, 10**9):
        edit_manifest(point, processes=processes)
        with pytest.raises(CheckpointError, match=r"processes: expected|files: missing weights-0000"):
            Manifest.read(point, verify=False)


def losses(out: Path) -> dict[int, list[float | None]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: [entry[name] for name in ("lm", "denoising", "loss")] for entry in entries}


def test_runs_of_other_processes_and_shardings_have_the_same_losses(folder: Path, tmp_path: Path) -> None:
    """One process, three that are not sharded, three that are, and one."""
    expected = {
        step: [None if value is None else pytest.approx(value, rel=1e-8, abs=0) for value in each]
        for step, each in losses(folder / "straight").items()
    }
    point = Path("checkpoints/step-4")
    shutil.copytree(folder / "none" / point, tmp_path / point)
    run(tmp_path, layouts.recipe(**sharded_models.SETTINGS), resume=True)
    for out, steps in ((folder / "none", (3, 4, 5, 6)), (folder / "full", (5, 6)), (tmp_path, (5, 6))):
        assert losses(out) == {step: expected[step] for step in steps}
    assert len([*(folder / "none" / point).glob("weights-*")]) == 3
    assert Manifest.read(folder / "none" / point).is_sliced


def test_a_failed_write_of_one_process_stops_all_at_one_step(folder: Path) -> None:
    texts = [(folder / f"failing.{rank}.txt").read_text() for rank in range(3)]
    assert texts[0].startswith("cannot write .step-2.partial: no space") and texts[0] == texts[1] == texts[2]
    assert "is saved in" in texts[0] or "no resume point was saved" in texts[0]
    names = sorted(path.name for path in (folder / "failing/checkpoints").iterdir())
    assert "step-1" in names and "step-2" not in names and not any(name.startswith(".") for name in names)
