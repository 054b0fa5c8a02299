"""Trackers of runs: what TensorBoard's and W&B's own readers find in their files, resumed runs, and failures."""

import json
import os
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from PIL import Image as PIL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import layouts
import tiny
from dreamkit.errors import RecipeError
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe, Tracker
from dreamkit.training.same_run import flat
from dreamkit.training.trackers import Trackers, missing_trackers
from runs import REGISTRY, kill_at, run
from wandb_files import read_records
from watched_runs import held_out_log, watched_recipe, watched_run

KEY = "0123456789abcdef0123456789abcdef01234567"
BOTH = ["tensorboard", "wandb"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def wandb_records(out: Path) -> Iterator[Any]:
    """Yield the records in the offline files of W&B, oldest first."""
    for file in sorted((out / "trackers/wandb").glob("offline-run-*/run-*.wandb")):
        yield from read_records(file)


def wandb_log(out: Path) -> dict[int, dict[str, Any]]:
    """Return the values of each step, those of W&B itself left out."""
    log: dict[int, dict[str, Any]] = {}
    for record in wandb_records(out):
        items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        if items:
            log.setdefault(items["_step"], {}).update(
                {key: value for key, value in items.items() if not key.startswith("_")}
            )
    return log


def tensorboard_log(out: Path) -> dict[int, dict[str, Any]]:
    """Return the numbers of each step, as TensorBoard shows them."""
    events = EventAccumulator(str(out / "trackers/tensorboard")).Reload()
    log: dict[int, dict[str, Any]] = {}
    for key in events.Tags()["scalars"]:
        for event in events.Scalars(key):
            assert key not in log.setdefault(event.step, {}), "a step is repeated"
            log[event.step][key] = event.value
    return log


def expected_log(out: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {
        line.pop("step"): {f"train/{key}": value for key, value in line.items() if value is not None}
        for line in lines
    }


def assert_same(log: Mapping[int, Any], expected: Mapping[int, Any], *, rel: float) -> None:
    assert log.keys() == expected.keys() and len(expected) > 1
    for step, values in expected.items():
        assert log[step] == pytest.approx(values, rel=rel), step


def settings(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in flat(recipe.to_dict()) if value is not None}


def test_trackers_have_the_log_of_a_run_that_was_killed_and_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run"
    recipe = layouts.recipe(steps=4, save_every=2, trackers=BOTH)
    kill_at(3, out, recipe)
    run(out, recipe, resume=True)
    expected = expected_log(out)
    assert_same(tensorboard_log(out), expected, rel=1e-6)  # float32
    log = wandb_log(out)  # offline, both parts are there; the numbers of step 3 are those of the second one
    assert_same(log, expected, rel=1e-12)
    runs = [record.run for record in wandb_records(out) if record.HasField("run") and record.run.display_name]
    assert {(each.project, each.display_name, each.run_id) for each in runs} == {
        ("dreamkit", "my run", (out / "trackers/wandb/run-id.txt").read_text())
    }
    config = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in wandb_records(out)
        for item in [*record.config.update, *record.run.config.update]
    }
    assert settings(recipe).items() <= config.items()
    (hparams,) = (out / "trackers/tensorboard").glob("*/hparams.yml")
    assert "train.learning_rate: 0.01" in hparams.read_text()
    # the key is in no file and in no line
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in "".join(capfd.readouterr())


def test_held_out_losses_and_drawings_are_tracked(tmp_path: Path) -> None:
    watched_run(tmp_path, watched_recipe(steps=2, draw_every=1, eval_every=1, trackers=BOTH))
    expected = expected_log(tmp_path)
    for line in held_out_log(tmp_path):
        step = line.pop("step")
        expected[step] |= {f"held_out/{name}": value for name, value in line.items() if value is not None}
    assert_same(tensorboard_log(tmp_path), expected, rel=1e-6)
    log = {
        step: {name: value for name, value in values.items() if not name.startswith("drawings/")}
        for step, values in wandb_log(tmp_path).items()
    }
    assert_same(log, expected, rel=1e-12)
    files = sorted(tmp_path.glob("drawings/step-2/*.png"))
    events = EventAccumulator(str(tmp_path / "trackers/tensorboard")).Reload()
    assert files and events.Tags()["images"] == [f"drawings/{file.stem}" for file in files]
    media = tmp_path.glob("trackers/wandb/offline-run-*/files/media/images/drawings/*.png")
    drawn = {pixels(file) for file in tmp_path.glob("drawings/step-*/*.png")}
    assert {pixels(file) for file in media} == drawn
    for file in files:
        first, second = events.Images(f"drawings/{file.stem}")
        assert (first.step, second.step) == (1, 2)
        assert pixels(BytesIO(second.encoded_image_string)) == pixels(file)


def pixels(file: Path | BytesIO) -> bytes:
    with PIL.open(file) as image:
        return image.convert("RGB").tobytes()


class Failing:
    """A tracker whose service cannot be reached."""

    name = "failing"
    requires_logging_directory = False

    def __init__(self, *_: object, **options: object) -> None:
        pass

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        raise ConnectionError(f"no answer from https://user:{os.environ['WANDB_API_KEY']}@host")

    def finish(self) -> None:
        raise ConnectionError("no answer")


def test_a_tracker_that_fails_is_reported_once_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Failing)
    result = run(tmp_path, layouts.recipe(steps=3, trackers=["tensorboard"]))
    assert len(result.log) == 3 and (tmp_path / "checkpoint").is_dir()
    lines = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert lines == [
        "tracker tensorboard: ConnectionError: no answer from https://user:$WANDB_API_KEY@host; training goes on"
    ]


def test_a_tracker_that_cannot_start_is_reported(tmp_path: Path) -> None:
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers/wandb").write_text("a file in the place of its folder")
    reports: list[str] = []
    with Trackers(layouts.recipe(trackers=BOTH), tmp_path, reports.append) as trackers:
        trackers.begin(0)
        trackers.add(1, {"lm": 1.0})
    assert len(reports) == 1 and reports[0].startswith("tracker wandb: ")
    assert tensorboard_log(tmp_path) == {1: {"train/lm": 1.0}}


def test_a_missing_package_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    assert missing_trackers(layouts.recipe(trackers=BOTH)) == []
    recipe = layouts.recipe(trackers=["wandb", "comet_ml"])
    with pytest.raises(
        RecipeError, match=r"got 'comet_ml', whose .* pip install comet-ml, or remove it"
    ) as caught:
        run(tmp_path / "out", recipe)
    assert "train.trackers: expected installed trackers" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(missing_trackers(layouts.recipe(trackers=["mlflow"]))) == 1


def test_the_names_are_those_of_accelerate() -> None:
    assert {*Tracker.__args__} == {*accelerate.tracking.LOGGER_TYPE_TO_CLASS}
    with pytest.raises(RecipeError, match=r"got 'tensorbord'.*did you mean 'tensorboard'"):
        recipe_from_dict(
            tiny.recipe(
                train={
                    "trainable": ["dream_queries"],
                    "global_batch": 1,
                    "steps": 1,
                    "trackers": ["tensorbord"],
                }
            ),
            REGISTRY,
            where="tiny",
        )
