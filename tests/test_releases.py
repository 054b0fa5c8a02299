"""Checkpoints and runs of earlier releases give the numbers they gave; a cache of format 1 has to be recreated."""

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
from releases.measure import measured, picture, same
from releases.using import MANIFESTS, RELEASES, dreamkit, logged, placed

CHECKPOINTS = ("checkpoint", "adapters", "imported")
MOST_BYTES = 5 * 10**6


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a release, which no test changes."""
    return placed(request.param, tmp_path_factory.mktemp("release") / "copy")


@pytest.fixture(scope="module")
def expected(release: Path) -> Any:
    return json.loads((release / "expected.json").read_text())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_gives_the_numbers_it_gave(name: str, release: Path, expected: Any) -> None:
    model, _ = load_checkpoint(release / name)
    same(measured(model), expected[name])


@pytest.mark.parametrize("name", [*CHECKPOINTS, "parts", "run/checkpoints/step-2"])
def test_a_folder_can_be_inspected_and_is_whole(name: str, release: Path) -> None:
    said = dreamkit("inspect", release / name).out
    assert "every file is intact" in said and "visual_projector" in said


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_was_loaded_is_written_again(name: str, release: Path, tmp_path: Path) -> None:
    first, _ = load_checkpoint(release / name)
    save_checkpoint(first, tmp_path / "again")
    second, _ = load_checkpoint(tmp_path / "again")
    before, after = first.state_dict(), second.state_dict()
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def test_a_document_is_written_from_the_command_line(release: Path, expected: Any, tmp_path: Path) -> None:
    prompt, *said = expected["checkpoint"]["written"][1]["said"]
    assert [*map(type, said)] == [dict, str, dict], "it learned to draw"
    out = tmp_path / "document"
    done = dreamkit("generate", release / "checkpoint", prompt, "--max-tokens", 10, "--seed", 5, "--out", out)
    assert done.out.splitlines() == [f"{out}/image-0.png", said[1], f"{out}/image-1.png"]
    assert {path.name for path in out.iterdir()} == {"image-0.png", "image-1.png", "index.html"}
    picture(3).save(tmp_path / "shown.png")
    shown = ("--image", tmp_path / "shown.png", "--chat", "--overwrite", "--out", out)
    assert dreamkit("generate", release / "checkpoint", "<image> what?", *shown).out


def test_adapters_are_folded_into_the_weights(release: Path, expected: Any, tmp_path: Path) -> None:
    dreamkit("merge-adapters", release / "adapters", tmp_path / "merged")
    model, _ = load_checkpoint(tmp_path / "merged")
    written = expected["adapters"]["written"]
    assert [each["said"][1:] for each in measured(model)["written"][:2]] == [
        e["said"][1:] for e in written[:2]
    ]


def test_a_stage_starts_from_a_checkpoint(release: Path, expected: Any, tmp_path: Path) -> None:
    dreamkit("train", release / "run.yaml", "--out", tmp_path / "run")
    same(logged(tmp_path / "run"), expected["run"])


@pytest.mark.parametrize("given", RELEASES, ids=lambda path: path.name)
@pytest.mark.parametrize("cached", [False, True], ids=["computing", "from a cache"])
def test_a_run_that_was_stopped_goes_on(cached: bool, given: Path, tmp_path: Path) -> None:
    folder = placed(given, tmp_path / "release")
    run, settings = folder / "run", [f"train.cache={folder / 'cache'}"] if cached else []
    assert not (run / "checkpoint").exists()
    if cached:
        dreamkit("cache", folder / "run.yaml", "--out", folder / "cache", "--overwrite")
    dreamkit("train", folder / "run.yaml", *settings, "--resume", "--out", run)
    same(logged(run), json.loads((folder / "expected.json").read_text())["run"])
    load_checkpoint(run / "checkpoint")


def test_a_stopped_run_can_be_started_from(release: Path, tmp_path: Path) -> None:
    point = release / "run/checkpoints/step-2"
    dreamkit("train", release / "run.yaml", f"init={point}", "train.steps=1", "--out", tmp_path / "run")
    assert len(logged(tmp_path / "run")) == 1


def test_the_command_in_the_refusal_recreates_a_cache_of_format_1(expected: Any, tmp_path: Path) -> None:
    folder = placed(RELEASES[0], tmp_path / "release")
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
    same(logged(tmp_path / "run"), expected["cache"])
    same(expected["cache"], expected["run"])


def test_every_public_name_is_there(expected: Any) -> None:
    for module, names in expected["names"].items():
        found = importlib.import_module(module)
        for name in names:
            with nullcontext() if name in found.__all__ else pytest.warns(DeprecationWarning):
                assert getattr(found, name) is not None


@pytest.mark.parametrize("given", RELEASES, ids=lambda path: path.name)
def test_a_release_is_small_and_names_no_folder_of_a_machine(given: Path) -> None:
    files = [path for path in given.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    for path in (path for path in files if path.name in MANIFESTS or path.suffix in (".yaml", ".jsonl")):
        assert not re.search(r'[" ](/|~|[A-Z]:\\)\w', path.read_text()), path
