"""Resumed runs: bitwise identical to uninterrupted ones, after damage of the log or of a resume point too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import layouts
import tiny
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import CheckpointError, TrainingError
from dreamkit.storage.folders import describe_files
from dreamkit.training.run_log import TIMES, RunLog
from runs import REGISTRY, assert_identical, kill_at, run, weights
from saved_models import edit_manifest

FILES = {"checkpoint", "checkpoints", "index.html", "log.jsonl", "run.json"}  # of a run with resume points


def without_times(log: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in log]


def test_a_resumed_run_is_bitwise_identical_to_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=5, save_every=2, accumulation=2)
    straight = run(tmp_path / "straight", recipe)
    kill_at(3, tmp_path / "resumed", recipe)
    assert not (tmp_path / "resumed/checkpoint").exists()
    torch.manual_seed(123)  # a new process has other random numbers
    resumed = run(tmp_path / "resumed", recipe, resume=True)
    assert_identical(weights(resumed.model), weights(straight.model))
    assert without_times(resumed.log) == without_times(straight.log)
    lines = [json.loads(line) for line in (tmp_path / "resumed/log.jsonl").read_text().splitlines()]
    assert lines == resumed.log
    reloaded, _ = load_checkpoint(resumed.checkpoint, REGISTRY)
    assert_identical(weights(reloaded), weights(straight.model))


def test_a_resume_point_of_an_earlier_release_continues(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=5, save_every=2, log_every=3, accumulation=2)
    straight = run(tmp_path / "straight", recipe)
    kill_at(3, tmp_path / "resumed", recipe)
    (point,) = (tmp_path / "resumed/checkpoints").iterdir()
    folder = point / "trainer"
    state = json.loads((folder / "state.json").read_text())
    lm, denoising, loss, *steps = state["interval"]["sums"]
    interval = {"last_logged": 0, "loss": loss, "sums": [lm, denoising, *steps], **state["documents"]}
    files = {"trainer_state.json": {"global_step": 2}, "interval.json": interval}
    for name, content in (files | {"processes.json": 1, "data.json": state["data"]}).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "state.json").unlink()
    set_files(point)
    resumed = run(tmp_path / "resumed", recipe, resume=True)
    assert_identical(weights(resumed.model), weights(straight.model))
    assert without_times(resumed.log) == without_times(straight.log)


def test_the_division_of_an_update_may_change_on_resume(tmp_path: Path) -> None:
    """An earlier recipe becomes one with `global_batch`."""
    kill_at(2, tmp_path, layouts.recipe(save_every=1, batch_size=2, accumulation=2))
    message = r"train\.global_batch: was 4, is 8"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, layouts.recipe(save_every=1, global_batch=8), resume=True)
    with pytest.raises(TrainingError, match=r"train\.batch_size: was 2, is 4"):
        run(tmp_path, layouts.recipe(save_every=1, batch_size=4), resume=True)
    recipe = layouts.recipe(save_every=1, global_batch=4, micro_batch=3)
    assert [entry["step"] for entry in run(tmp_path, recipe, resume=True).log] == [1, 2, 3]
    assert run(tmp_path, layouts.recipe(global_batch=4), resume=True).was_finished
    with pytest.raises(TrainingError, match=r"train\.global_batch: was 4, is null"):
        run(tmp_path, layouts.recipe(batch_size=4), resume=True)


def test_noise_needs_no_state_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = layouts.recipe(steps=4, save_every=2, condition_drop=0.5)
    straight = run(tmp_path / "straight", recipe)
    kill_at(3, tmp_path / "resumed", recipe)
    monkeypatch.setattr("dreamkit.training.loop.load_random_state", lambda *_: None)
    torch.manual_seed(123)
    resumed = run(tmp_path / "resumed", recipe, resume=True)
    assert_identical(weights(resumed.model), weights(straight.model))


def test_a_resumed_run_in_float64_is_identical(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=4, save_every=2, precision="float64")
    straight = run(tmp_path / "straight", recipe)
    assert {parameter.dtype for parameter in straight.model.parameters()} == {torch.float64}
    kill_at(3, tmp_path / "resumed", recipe)
    resumed = run(tmp_path / "resumed", recipe, resume=True)
    assert_identical(weights(resumed.model), weights(straight.model))
    assert without_times(resumed.log) == without_times(straight.log)


def test_a_run_resumes_after_an_incomplete_line_of_its_log(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=3, save_every=1)
    kill_at(2, tmp_path, recipe)
    log = tmp_path / "log.jsonl"
    before = log.read_text().splitlines()
    log.write_text("\n".join(before)[:-30])
    resumed = run(tmp_path, recipe, resume=True)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines == resumed.log
    assert {path.name for path in tmp_path.iterdir()} == FILES
    shutil.rmtree(tmp_path / "checkpoint")
    for line in (
        before[1][:-30],
        "[]",
        '{"lm": 2.0}',
        '{"step": "1"}',
        '{"step": 1, "lm": "2"}',
        '{"step": 1, "lm": 1e999}',
        "[" * 10**5,
    ):
        log.write_text(f"{before[0]}\n{line}\n{before[1]}\n")
        with pytest.raises(TrainingError, match=r"log\.jsonl:2: invalid JSON entry"):
            run(tmp_path, recipe, resume=True)


def test_the_log_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "lm": 2.0}\n')
    before: list[str] = []

    def replace(source: Path, target: Path) -> None:
        before.append(Path(target).read_text())
        Path(source).rename(target)

    monkeypatch.setattr("os.replace", replace)
    RunLog(log).begin(step=1)
    assert before == [log.read_text()]


def test_the_error_of_a_damaged_resume_point_names_the_one_before(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=3, save_every=1)
    straight = run(tmp_path / "straight", recipe)
    kill_at(3, tmp_path / "out", recipe)
    points = tmp_path / "out/checkpoints"
    (points / "step-2/dream_queries.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"damaged(.|\n)*remove it; --resume then continues from \S*step-1"
    ):
        run(tmp_path / "out", recipe, resume=True)
    shutil.rmtree(points / "step-2")
    assert_identical(weights(run(tmp_path / "out", recipe, resume=True).model), weights(straight.model))
    for folder in (points / "step-2", tmp_path / "out/checkpoint"):
        shutil.rmtree(folder)
    (points / "step-1/dream_queries.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "out", recipe, resume=True)
    assert "--resume" not in str(caught.value)


def test_the_last_two_resume_points_stay(tmp_path: Path) -> None:
    result = run(tmp_path / "out", layouts.recipe(steps=4, save_every=1))
    points = tmp_path / "out/checkpoints"
    assert sorted(path.name for path in points.iterdir()) == ["step-2", "step-3"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    for folder in (points / "step-3", result.checkpoint):
        load_checkpoint(folder, REGISTRY)


def test_a_run_resumes_only_with_the_same_recipe(tmp_path: Path) -> None:
    kill_at(2, tmp_path, layouts.recipe(save_every=1))
    with pytest.raises(TrainingError, match=r"train\.learning_rate: was 0\.01, is 0\.5"):
        run(tmp_path, layouts.recipe(save_every=1, learning_rate=0.5), resume=True)
    run(tmp_path, layouts.recipe(save_every=2, log_every=2), resume=True)


def test_a_resumed_run_obeys_new_intervals_of_log_and_resume_points(tmp_path: Path) -> None:
    settings = {"steps": 9, "schedule": "constant"}
    straight = run(tmp_path / "straight", layouts.recipe(save_every=4, log_every=3, **settings))
    out = tmp_path / "resumed"
    kill_at(3, out, layouts.recipe(save_every=1, log_every=1, **settings))
    resumed = run(out, layouts.recipe(save_every=4, log_every=3, **settings), resume=True)
    assert [entry["step"] for entry in resumed.log] == [1, 2, 3, 6, 9]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-4", "step-8"]
    assert_identical(weights(resumed.model), weights(straight.model))


def test_a_resumed_run_without_save_every_writes_no_more_resume_points(tmp_path: Path) -> None:
    kill_at(3, tmp_path, layouts.recipe(save_every=1, steps=4))
    run(tmp_path, layouts.recipe(save_every=0, steps=4), resume=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]


def test_a_resumed_run_takes_no_model(tmp_path: Path) -> None:
    kill_at(2, tmp_path, layouts.recipe(save_every=1))
    with pytest.raises(TrainingError, match="expected no model with resume"):
        run(tmp_path, layouts.recipe(save_every=1), resume=True, model=tiny.model())
    assert not (tmp_path / "checkpoint").exists()


def set_files(point: Path) -> None:
    """Set the files in the manifest of a resume point to those that are there."""
    files = {name: record for name, record in describe_files(point).items() if name != Manifest.FILE}
    edit_manifest(point, files=files)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("exploded",))


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_pickle_with_code_in_a_resume_point_is_refused(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = layouts.recipe(steps=3, save_every=1)
    kill_at(2, tmp_path, recipe)
    point = sorted((tmp_path / "checkpoints").iterdir())[-1]
    file = point / "trainer" / name
    torch.save({"state": Bomb()}, file)
    set_files(point)
    with pytest.raises(
        CheckpointError, match=rf"{file}: expected a pickle of tensors, got one .*print'"
    ) as caught:
        run(tmp_path, recipe, resume=True)
    assert "weights_only" not in str(caught.value) and "exploded" not in capfd.readouterr().out


def test_a_state_that_cannot_be_read_is_refused_without_a_word_about_saving(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=3, save_every=1)
    kill_at(2, tmp_path, recipe)
    point = sorted((tmp_path / "checkpoints").iterdir())[-1]
    (point / "trainer/optimizer-00001-of-00001.safetensors").unlink()
    set_files(point)
    message = "state of its run cannot be read: .*missing optimizer-00001-of-00001.safetensors"
    with pytest.raises(CheckpointError, match=message) as caught:
        run(tmp_path, recipe, resume=True)
    assert not getattr(caught.value, "__notes__", [])
