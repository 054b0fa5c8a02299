"""The command `dreamkit train`: a run is continued by its folder alone."""

import shutil
from pathlib import Path

import pytest

from dreamkit.checkpoints.manifest import Manifest

SETTINGS = ("train.steps=2", "train.global_batch=2", "train.save_every=1", "train.log_every=1")


@pytest.fixture
def out(run, tmp_path: Path) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path / "run"
    assert run("train", "digits/stage1", *SETTINGS, "--out", folder)[0] == 0
    return folder


def test_a_run_is_resumed_without_its_recipe(run, out: Path) -> None:
    code, _, err = run("train", "--out", out, "--resume")
    assert code == 0 and "is finished; nothing was trained" in err
    code, _, err = run("train", "--out", out, "--resume", "train.steps=3", "train.keep_last=1")
    assert code == 0 and "train.steps was 2, is 3; continuing after step 1" in err
    assert "train.keep_last was 2, is 1\n" in err
    train = Manifest.read(out / "checkpoint").recipe["train"]
    assert (train["steps"], train["keep_last"], train["global_batch"]) == (3, 1, 2)


def test_settings_of_a_resumed_run_are_checked_like_those_of_a_recipe(run, out: Path) -> None:
    code, _, err = run("train", "--out", out, "--resume", "train.stepps=3")
    assert code == 2 and "unknown key 'stepps'; did you mean 'steps'?" in err
    code, _, err = run("train", "--out", out, "--resume", "train.steps=3", "train.learning_rate=1")
    assert code == 2 and "train.learning_rate: was " in err


def test_a_command_without_recipe_or_run_is_an_error(run, tmp_path: Path) -> None:
    code, _, err = run("train", "--out", tmp_path / "new")
    assert code == 2 and "name one, such as digits/stage1" in err
    code, _, err = run("train", "--out", tmp_path / "new", "--resume")
    assert code == 2 and "without a resume point; train with a recipe" in err
    assert not (tmp_path / "new").exists()


def test_a_run_that_left_no_resume_point_is_named_as_such(run, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    out.mkdir()
    (out / "log.jsonl").touch()
    code, _, err = run("train", "--out", out, "--resume")
    assert code == 2 and "its run has written none" in err
    code, _, err = run("train", "digits/stage1", "--out", out)
    assert code == 2 and "its run left no resume point" in err


def test_the_folder_of_a_run_or_of_a_resume_point_is_named_in_place_of_the_other(run, out: Path) -> None:
    code, _, err = run("train", "--out", out / "checkpoints/step-1", "--resume")
    assert code == 2 and "name the --out folder of its run" in err
    shutil.rmtree(out / "checkpoint")
    code, _, err = run("inspect", out)
    assert code == 2 and f"did you mean {out / 'checkpoints/step-1'}?" in err
