"""Resuming on data that changed, was corrected or was moved since the resume point was written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.storage.folders import describe_files
from dreamkit.training.resume_state import read_state
from saved_models import edit_manifest

Run = Callable[..., tuple[int, str, str]]
CAPTIONS = ["one", "two", "three"]


def write_data(folder: Path, captions: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, _ in enumerate(captions):
        tiny.picture(number).save(folder / f"{number}.png")
    records = [{"image": f"{number}.png", "caption": caption} for number, caption in enumerate(captions)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return the file of a recipe with three pairs beside it in `data`."""
    write_data(tmp_path / "data", CAPTIONS)
    train = {"trainable": ["dream_queries"], "steps": 8, "batch_size": 1, "log_every": 1, "on_error": "stop"}
    data = [{"name": "pairs", "path": "data/pairs.jsonl"}]
    (tmp_path / "tiny.yaml").write_text(json.dumps(tiny.recipe(train=train, data=data)))
    return tmp_path / "tiny.yaml"


@pytest.fixture
def stopped(recipe: Path, run: Run, tmp_path: Path) -> Path:
    """Return the folder of a run that a bad image ended."""
    (tmp_path / "data/2.png").write_bytes(b"cut")
    code, _, err = run("train", recipe, "--out", tmp_path / "out")
    assert code == 2 and "cannot read the image" in err
    (point,) = (tmp_path / "out/checkpoints").iterdir()
    assert f"{point.name.replace('-', ' ')} is saved in {point}; correct the data" in err
    assert "continue with --resume --changed-data" in err
    return tmp_path / "out"


def test_a_run_continues_after_its_bad_image_is_corrected(stopped: Path, recipe: Path, run: Run) -> None:
    tiny.picture(2).save(recipe.parent / "data/2.png")
    assert run("train", recipe, "--out", stopped, "--resume")[0] == 0
    code, out, err = run("train", recipe, "--out", stopped, "--resume")
    assert code == 0 and f"the run in {stopped} is finished" in err
    assert out == f"model of the finished run: {stopped / 'checkpoint'}\n"


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["one", "two", "seven"], "data.0: changed: records"),
        (["one", "two", "three", "four"], "data.0: had 3 documents, has 4"),
    ],
)
def test_changed_data_is_refused_until_it_is_accepted(
    stopped: Path, recipe: Path, run: Run, captions: list[str], message: str
) -> None:
    write_data(recipe.parent / "data", captions)
    code, _, err = run("train", recipe, "--out", stopped, "--resume")
    assert code == 2 and "the data has changed since" in err and message in err
    assert "--resume --changed-data" in err and not (stopped / "checkpoint").exists()
    assert run("train", recipe, "--out", stopped, "--resume", "--changed-data")[0] == 0
    manifest = json.loads((stopped / "checkpoint/dreamkit.json").read_text())
    assert manifest["recipe"]["train"]["steps"] == 8


def test_a_moved_run_continues_with_moved_data(stopped: Path, recipe: Path, run: Run, tmp_path: Path) -> None:
    tiny.picture(2).save(tmp_path / "data/2.png")
    shutil.copytree(tmp_path, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "data")
    moved = tmp_path / "elsewhere"
    code, _, err = run("train", moved / "tiny.yaml", "--out", moved / "out", "--resume")
    assert code == 0, err


def test_an_older_resume_point_continues_without_fingerprints(
    stopped: Path, recipe: Path, run: Run, tmp_path: Path
) -> None:
    (point,) = (stopped / "checkpoints").iterdir()
    state = read_state(point)
    files = {"trainer_state.json": {"global_step": state.step}, "processes.json": state.processes}
    for name, content in files.items():
        (point / "trainer" / name).write_text(json.dumps(content))
    (point / "trainer/state.json").unlink()
    edit_manifest(
        point, files={name: file for name, file in describe_files(point).items() if name != Manifest.FILE}
    )
    (tmp_path / "data").rename(tmp_path / "moved")
    write_data(tmp_path / "moved", ["one", "two", "seven"])
    code, _, err = run(
        "train", recipe, f"data.0.path={tmp_path / 'moved/pairs.jsonl'}", "--out", stopped, "--resume"
    )
    assert code == 2 and "data[0].path" in err  # nothing shows that it is the same data
    (tmp_path / "moved").rename(tmp_path / "data")
    assert run("train", recipe, "--out", stopped, "--resume")[0] == 0


def test_changed_data_without_resume_is_an_error(recipe: Path, run: Run, tmp_path: Path) -> None:
    code, _, err = run("train", recipe, "--out", tmp_path / "out", "--changed-data")
    assert code == 2 and "add --resume or leave out --changed-data" in err
    assert not (tmp_path / "out").exists()
