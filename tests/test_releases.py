"""Checkpoints and runs of earlier releases still compute the same; a cache of format 1 must be recreated."""

from __future__ import annotations

import importlib
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit import load_checkpoint, save_checkpoint
from releases.measure import assert_same, measure, picture
from releases.using import MANIFESTS, RELEASES, copy_release, dreamkit, read_expected, read_log

CHECKPOINTS = ("checkpoint", "adapters", "imported")
MOST_BYTES = 5 * 10**6


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name)
def source(request: pytest.FixtureRequest) -> Path:
    """Return the folder of a release."""
    return request.param


@pytest.fixture(scope="module")
def release(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the release. Tests only read it."""
    return copy_release(source, tmp_path_factory.mktemp("release") / "copy")


@pytest.fixture(scope="module")
def expected(source: Path) -> Any:
    return read_expected(source)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_computes_the_recorded_numbers(name: str, release: Path, expected: Any) -> None:
    model, _ = load_checkpoint(release / name)
    assert_same(measure(model), expected[name])


@pytest.mark.parametrize("name", [*CHECKPOINTS, "parts", "run/checkpoints/step-2"])
def test_inspect_finds_a_checkpoint_intact(name: str, release: Path) -> None:
    out = dreamkit("inspect", release / name).out
    assert "every file is intact" in out and "visual_projector" in out


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_loaded_checkpoint_is_saved_and_loaded_without_a_change(
    name: str, release: Path, tmp_path: Path
) -> None:
    first, _ = load_checkpoint(release / name)
    save_checkpoint(first, tmp_path / "again")
    second, _ = load_checkpoint(tmp_path / "again")
    before, after = first.state_dict(), second.state_dict()
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def test_generate_continues_a_prompt_as_recorded(release: Path, expected: Any, tmp_path: Path) -> None:
    prompt, *answer = expected["checkpoint"]["written"][1]["said"]
    assert [*map(type, answer)] == [dict, str, dict], "the recorded answer is an image, a text and an image"
    out = tmp_path / "document"
    options = ("--max-tokens", 10, "--seed", 5, "--out", out)
    printed = dreamkit("generate", release / "checkpoint", prompt, *options).out
    assert printed.splitlines() == [f"{out}/image-0.png", answer[1], f"{out}/image-1.png"]
    assert {path.name for path in out.iterdir()} == {"image-0.png", "image-1.png", "index.html"}
    picture(3).save(tmp_path / "question.png")
    options = ("--image", tmp_path / "question.png", "--chat", "--overwrite", "--out", out)
    assert dreamkit("generate", release / "checkpoint", "<image> what?", *options).out


def test_a_model_with_merged_adapters_generates_the_recorded_documents(
    release: Path, expected: Any, tmp_path: Path
) -> None:
    dreamkit("merge-adapters", release / "adapters", tmp_path / "merged")
    model, _ = load_checkpoint(tmp_path / "merged")
    actual, recorded = (
        [document["said"][1:] for document in numbers["written"][:2]]
        for numbers in (measure(model), expected["adapters"])
    )
    assert actual == recorded


def test_a_run_that_starts_from_a_checkpoint_logs_the_recorded_losses(
    release: Path, expected: Any, tmp_path: Path
) -> None:
    dreamkit("train", release / "run.yaml", "--out", tmp_path / "run")
    assert_same(read_log(tmp_path / "run"), expected["run"])


@pytest.mark.parametrize("cached", [False, True], ids=["without a cache", "cached"])
def test_a_stopped_run_resumes_to_the_recorded_losses(
    cached: bool, source: Path, expected: Any, tmp_path: Path
) -> None:
    folder = copy_release(source, tmp_path / "release")
    run, settings = folder / "run", [f"train.cache={folder / 'cache'}"] if cached else []
    assert not (run / "checkpoint").exists()
    if cached:
        dreamkit("cache", folder / "run.yaml", "--out", folder / "cache", "--overwrite")
    err = dreamkit("train", folder / "run.yaml", *settings, "--resume", "--out", run).err
    assert err.count("an earlier release wrote it, which had another order of documents") == 1
    log = read_log(run)
    assert_same(log, expected["resumed"])
    assert_same(log[:2], json.loads((folder / "expected.json").read_text())["run"][:2])
    load_checkpoint(run / "checkpoint")


def test_a_run_can_start_from_a_resume_point(release: Path, tmp_path: Path) -> None:
    point = release / "run/checkpoints/step-2"
    dreamkit("train", release / "run.yaml", f"init={point}", "train.steps=1", "--out", tmp_path / "run")
    assert len(read_log(tmp_path / "run")) == 1


def test_the_command_in_the_refusal_recreates_a_cache_of_format_1(expected: Any, tmp_path: Path) -> None:
    folder = copy_release(RELEASES[0], tmp_path / "release")
    cache, recipe = folder / "cache", folder / "run.yaml"
    setting = f"train.cache={cache}"
    remedy = f"dreamkit cache RECIPE --out {cache} --overwrite"
    for command in (("check", recipe, setting), ("train", recipe, setting, "--out", tmp_path / "run")):
        err = dreamkit(*command, code=2).err
        assert f"train.cache: {cache / 'cache.json'}: format version 1, written by dreamkit 0.1.0" in err
        assert f"reads versions from 2 on; recreate it from a recipe with all of its data: {remedy}" in err
    assert remedy in dreamkit("inspect", cache, code=2).err
    assert not (tmp_path / "run").exists()
    assert "replaced" in dreamkit(*remedy.replace("RECIPE", str(recipe)).split()[1:]).out
    notes = dreamkit("check", recipe, setting).out
    assert "read from" in notes and "may lack" not in notes
    err = dreamkit("train", recipe, setting, "--out", tmp_path / "run").err
    assert "vision_encoder does not run" in err and "image_decoder does not encode" in err
    assert_same(read_log(tmp_path / "run"), expected["cache"])
    assert_same(expected["cache"], expected["run"])


def test_every_public_name_of_the_release_still_exists(expected: Any) -> None:
    for module, names in expected["names"].items():
        imported = importlib.import_module(module)
        for name in names:
            with nullcontext() if name in imported.__all__ else pytest.warns(DeprecationWarning):
                assert getattr(imported, name) is not None


@pytest.mark.parametrize("source", RELEASES, ids=lambda path: path.name)
def test_a_release_is_small_and_contains_no_absolute_path(source: Path) -> None:
    files = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    for path in (path for path in files if path.name in MANIFESTS or path.suffix in (".yaml", ".jsonl")):
        assert not re.search(r'[" ](/|~|[A-Z]:\\)\w', path.read_text()), path
