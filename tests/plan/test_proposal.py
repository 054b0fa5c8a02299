"""Proposed settings: the fastest that fit by their plans, within what was asked, and as a recipe that trains."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given, strategies as st
from typer.testing import CliRunner

import alive
import fitted_peaks
import tiny
from alive import ALL, DEEP, JOINTS, WIDE
from dreamkit.cli import app
from dreamkit.errors import DreamkitError
from dreamkit.plan import plan as planning
from dreamkit.plan.memory import Device
from dreamkit.plan.plan import plan
from dreamkit.plan.proposal import QUANTIZE, Proposal, propose, row_numbers, usable
from dreamkit.plan.trials import USABLE, changed, largest
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

REGISTRY = Registry.load()
TOLERANCE = 0.15
SMALL = {"trainable": ALL, "global_batch": 4, "batch_size": None, "micro_batch": None}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return alive.recipe(SMALL)


def peak(recipe: Recipe, devices: int = 1, device: Device = "cuda", **train: Any) -> int:
    with_settings = replace(recipe, train=replace(recipe.train, **train))
    return plan(with_settings, REGISTRY, processes=devices, device=device).memory.peak


def proposed(recipe: Recipe, most: int, devices: int = 1, **options: Any) -> Proposal:
    """Propose settings whose planned peak is at most `most` bytes."""
    memory = int(most / USABLE) + 2
    while usable(memory) > most:
        memory -= 1
    return propose(recipe, REGISTRY, memory, devices=devices, **options)


@given(st.integers(1, 3000))
def test_numbers_of_rows_are_the_smallest_for_each_number_of_passes(documents: int) -> None:
    assert row_numbers(documents) == sorted({-(-documents // passes) for passes in range(1, documents + 1)})


@given(st.lists(st.integers(0, 1000), min_size=1).map(sorted), st.integers(-1, 1001))
def test_the_largest_number_that_fits_is_found(peaks: list[int], limit: int) -> None:
    numbers = [10 * (index + 1) for index in range(len(peaks))]
    asked = []

    def peak(number: int) -> float:
        asked.append(number)
        return peaks[number // 10 - 1]

    fitting = [number for number, own in zip(numbers, peaks, strict=True) if own <= limit]
    assert largest(numbers, peak, limit) == max(fitting, default=0)
    assert len(asked) <= 4 + len(numbers).bit_length()


@given(st.integers(1, 10**6), st.integers(0, 10**9), st.integers(1, 10**6), st.integers(0, 10**12))
def test_four_plans_find_the_rows_if_memory_grows_in_a_line(
    documents: int, fixed: int, each: int, limit: int
) -> None:
    asked = []

    def peak(rows: int) -> float:
        asked.append(rows)
        return fixed + each * rows

    numbers = row_numbers(documents)
    assert largest(numbers, peak, limit) == max((n for n in numbers if fixed + each * n <= limit), default=0)
    assert len(asked) <= 4


def test_a_recipe_that_fits_keeps_its_settings_and_runs_one_pass(recipe: Recipe) -> None:
    found = proposed(recipe, 10**12)
    assert found.changes == {"train.micro_batch": 4} and found.plan.passes == 1
    assert found.recipe.to_dict() == changed(recipe, {"train.micro_batch": 4}).to_dict()
    assert [trial.fits for trial in found.trials] == [True, True]


def test_fewer_rows_come_before_gradient_checkpointing(recipe: Recipe) -> None:
    found = proposed(recipe, peak(recipe, micro_batch=2))
    assert found.changes == {"train.micro_batch": 2}
    assert found.plan.memory.peak <= found.usable == usable(found.memory)


def least_peak(recipe: Recipe, devices: int = 1, **train: Any) -> int:
    """Return the smaller peak of one row in each pass and of a single pass, which keeps no gradients of others."""
    documents = recipe.train.update_documents(devices) // devices
    return min(peak(recipe, devices, micro_batch=rows, **train) for rows in (1, documents))


def test_devices_share_weights_if_one_has_no_room_for_all() -> None:
    wide = alive.recipe(SMALL, **WIDE)
    found = proposed(wide, least_peak(wide, devices=2, sharding="none") - 1, devices=2)
    assert found.recipe.train.sharding == "full" and found.changes.keys() == {"train.micro_batch"}
    assert {trial.settings["train.sharding"] for trial in found.trials} == {"none", "full"}


def test_the_host_is_used_last_and_weights_that_cannot_fit_cost_no_plan_of_a_step() -> None:
    wide = alive.recipe(SMALL, **WIDE)
    with patch.object(planning, "measure_step", wraps=planning.measure_step) as measured:
        found = proposed(wide, peak(wide, cpu_offload=True, gradient_checkpointing=True, micro_batch=1))
    assert found.changes["train.cpu_offload"] is True and found.plan.memory.on_host > found.usable
    steps = [trial for trial in found.trials if trial.is_step]
    assert measured.call_count == len(steps) + 1 < len(found.trials)  # one is the expected peak


def test_a_frozen_language_model_is_quantized_before_the_host_is_used() -> None:
    frozen = alive.recipe(SMALL | {"trainable": JOINTS, "precision": "bfloat16"}, **DEEP)
    int8, whole = (
        least_peak(changed(frozen, {QUANTIZE: kind}), gradient_checkpointing=True) for kind in ("int8", None)
    )
    found = proposed(frozen, (int8 + whole) // 2)
    assert found.changes[QUANTIZE] == "int8" == found.recipe.model.language_model.quantize
    assert not found.recipe.train.cpu_offload


def test_settings_of_the_recipe_and_of_the_command_line_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {"gradient_checkpointing": True, "precision": "bfloat16"})
    assert set(proposed(load_recipe(path, (), REGISTRY), 10**12).changes) == {"train.micro_batch"}
    held = ["train.gradient_checkpointing=false", "train.micro_batch=2", "train.cpu_offload=false"]
    loaded = load_recipe(path, held, REGISTRY)
    found = proposed(loaded, 10**12)
    assert found.changes == {"train.micro_batch": 2} and len(found.trials) == 1
    with pytest.raises(DreamkitError, match=r"train\.micro_batch=2\n.* do not fit into"):
        proposed(loaded, peak(loaded, micro_batch=2) - 1)


def test_an_earlier_recipe_keeps_the_documents_of_its_update() -> None:
    earlier = alive.recipe({"trainable": ALL, "batch_size": 2, "accumulation": 3})
    found = proposed(earlier, 10**12, devices=2)
    assert found.changes["train.global_batch"] == 12 == earlier.train.update_documents(2)
    assert (found.recipe.train.batch_size, found.recipe.train.accumulation) == (None, None)
    assert found.plan.documents == 6


def write(path: Path, train: dict[str, Any], **changes: Any) -> str:
    base = {"trainable": ALL, "steps": 1, "global_batch": 4, "max_length": alive.LENGTH, "log_every": 1}
    unset = {"batch_size": None, "accumulation": None}
    path.write_text(yaml.safe_dump(tiny.recipe(train=base | unset | train, **changes)))
    return str(path)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_overlay_is_written_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"text": f"word {number}", "images": []}) + "\n" for number in range(8))
    )
    write(tmp_path / "tiny.yaml", {}, data=[{"name": "interleaved", "path": str(data)}])
    loaded = load_recipe("tiny.yaml", ["train.seed=3"], REGISTRY)
    memory = f"{int(peak(loaded, micro_batch=1) / USABLE) - 2}B"
    options = ["--devices", "1", "--memory", memory, "--write", "fit.yaml"]
    code, out = invoke("plan", "tiny.yaml", "train.seed=3", *options)
    command = "dreamkit train tiny.yaml fit.yaml train.seed=3 --out runs/tiny"
    assert code == 0 and out.endswith(f"fit.yaml is written; train with\n  {command}\n")
    text = (tmp_path / "fit.yaml").read_text()
    assert text in out and text.splitlines()[2] == f"# {command}"
    assert "for tiny.yaml on 1 device of " in text.splitlines()[0]
    overlaid = load_recipe("tiny.yaml", ["fit.yaml", "train.seed=3"], REGISTRY)
    assert overlaid.train.gradient_checkpointing and overlaid.train.seed == 3
    assert replace(overlaid.train, micro_batch=None, gradient_checkpointing=False) == loaded.train
    code, out = invoke(*shlex.split(command)[1:])
    assert code == 0 and (tmp_path / "runs/tiny/checkpoint").is_dir()
    options[3] = "1GiB"
    code, out = invoke("plan", "tiny.yaml", "train.seed=3", *options, "--json")
    numbers = json.loads(out)
    assert numbers["settings"] == {"train.micro_batch": 4} and numbers["peak"] <= numbers["usable"]
    assert numbers["command"] == command
    replaced = load_recipe("tiny.yaml", ["fit.yaml"], REGISTRY).train
    assert (replaced.micro_batch, replaced.gradient_checkpointing) == (4, False)


def test_the_arithmetic_adds_up(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    code, out = invoke("plan", path, "--devices", "2", "--memory", "1GiB", "--machines", "2")
    assert code == 0
    rows = {line[:18].strip(): line[18:].split() for line in out.splitlines()}
    assert rows["usable"][:2] == ["921.60", "MiB"] and rows["usable"][4:] == ["90%", "of", "1.00", "GiB"]
    units = {"KiB": 1, "MiB": 1024}
    terms = ("weights", "gathered by FSDP", "optimizer states", "activations")
    sizes = [float(rows[name][0]) * units[rows[name][1]] for name in (*terms, "total")]
    assert sum(sizes[:-1]) == pytest.approx(sizes[-1], rel=0.01)
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --nproc-per-node 1 -m dreamkit" in out


def test_nothing_that_fits_is_an_error_with_the_least_peak(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    with pytest.raises(DreamkitError) as raised:
        invoke("plan", path, "--devices", "2", "--memory", "10KiB", "--write", str(tmp_path / "fit.yaml"))
    first, why, *advice = str(raised.value).splitlines()
    assert first.startswith("no settings fit into 2 devices of 10.00 KiB, of which a plan may take 90%; ")
    assert "train.cpu_offload=true" in first and first.endswith("train.micro_batch=1")
    assert "the largest term is" in why and any("--devices 4" in line for line in advice)
    assert not (tmp_path / "fit.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "2"], "expected --memory with --devices"),
        (
            ["--devices", "2", "--processes", "2", "--memory", "1GiB"],
            "expected --devices alone, got --processes",
        ),
        (["--devices", "2", "--batches", "2", "--memory", "1GiB"], "expected --devices alone, got --batches"),
        (["--devices", "9", "--memory", "1GiB"], r"expected at most 4 devices, one for each document"),
        (["--devices", "3", "--machines", "2", "--memory", "1GiB"], "that 2 machines share evenly, got 3"),
        (
            ["train.batch_size=1", "--devices", "1", "--memory", "1GiB"],
            r"got train\.batch_size on the command line",
        ),
        (["--write", "fit.yaml"], "expected --devices with --write"),
        (["--devices", "1", "--memory", "1GiB", "--write", "{}/tiny.yaml"], "exists and is no proposal"),
        (["--devices", "1", "--memory", "1GiB", "--write", "fit"], "ends in .yaml and has no =, got 'fit'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_planned(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "tiny.yaml", {})
    with patch.object(planning, "measure_step") as measured, pytest.raises(DreamkitError, match=message):
        invoke("plan", path, *(each.format(tmp_path) for each in arguments))
    assert not measured.called


def test_a_proposal_takes_the_memory_of_a_real_step(recipe: Recipe, tmp_path: Path) -> None:
    found = proposed(
        recipe,
        plan(changed(recipe, {"train.micro_batch": 2}), REGISTRY, device="cpu").memory.peak,
        device="cpu",
    )
    assert found.changes == {"train.micro_batch": 2}
    real = alive.real_peak(found.recipe, tmp_path / "out")
    print(f"{found.plan.memory.peak / real:.3f} of {real}")
    assert abs(found.plan.memory.peak / real - 1) <= TOLERANCE


@pytest.mark.full
@pytest.mark.parametrize(
    ("devices", "shape"),
    [
        (1, {"micro_batch": 4}),
        (2, {"sharding": "full", "micro_batch": 2}),
        (2, {"sharding": "full", "micro_batch": 4, "gradient_checkpointing": True}),
    ],
    ids=["one process", "sharded", "sharded, with gradient checkpointing"],
)
def test_a_proposal_takes_the_memory_of_real_processes(
    devices: int, shape: dict[str, Any], tmp_path: Path
) -> None:
    large = alive.recipe(SMALL | {"global_batch": 8, "max_length": 512}, **fitted_peaks.LARGE)
    found = proposed(large, peak(large, devices, device="cpu", **shape), devices=devices, device="cpu")
    assert {key: getattr(found.recipe.train, key) for key in shape} == shape
    for real in fitted_peaks.measure(found.recipe, devices, tmp_path):
        print(f"{found.changes}: {found.plan.memory.peak / real:.3f} of {real}")
        assert abs(found.plan.memory.peak / real - 1) <= TOLERANCE
