"""Runs that are resumed with another number of steps: the order of documents continues, the schedule is the new one."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import layouts
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.data.samples import Samples
from dreamkit.errors import CheckpointError, TrainingError
from dreamkit.recipe.sections import Recipe
from dreamkit.training.run_log import TIMES
from runs import REGISTRY, Interrupted, assert_identical, interrupt_at, kill_at, run, weights


def recipe(steps: int, schedule: str = "constant", **settings: Any) -> Recipe:
    return layouts.recipe(steps=steps, schedule=schedule, **{"save_every": 3, **settings})


def without_times(log: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in log]


def test_a_lengthened_run_is_bitwise_identical_to_a_longer_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = run(tmp_path / "straight", recipe(8))
    run(tmp_path / "out", recipe(4))
    torch.manual_seed(123)
    capsys.readouterr()
    longer = run(tmp_path / "out", recipe(8, log_every=1), resume=True)
    assert "train.steps was 4, is 8; continuing after step 3\n" in capsys.readouterr().err
    assert not longer.was_finished
    assert_identical(weights(longer.model), weights(straight.model))
    assert without_times(longer.log) == without_times(straight.log)
    reloaded, _ = load_checkpoint(longer.checkpoint, REGISTRY)
    assert_identical(weights(reloaded), weights(straight.model))
    assert run(tmp_path / "out", recipe(8), resume=True).was_finished


def test_the_documents_of_a_lengthened_run_continue_at_the_next_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, recipe(4, accumulation=2))
    places: list[int] = []
    original = Samples.__getitems__
    monkeypatch.setattr(
        Samples, "__getitems__", lambda self, batch: places.extend(batch) or original(self, batch)
    )
    longer = recipe(9, accumulation=2)
    run(tmp_path, longer, resume=True)
    step = longer.train.batch_size * 2
    assert places == list(range(3 * step, 9 * step))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_over_the_steps_is_the_new_one_from_the_resume_point_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    settings = {"warmup": 1, "log_every": 1}
    straight = run(tmp_path / "straight", recipe(8, schedule, **settings))
    short = run(tmp_path / "out", recipe(4, schedule, **settings))
    capsys.readouterr()
    longer = run(tmp_path / "out", recipe(8, schedule, **settings), resume=True)
    rates = [[entry["learning_rate"] for entry in result.log] for result in (short, straight, longer)]
    assert rates[2] == rates[0][:3] + rates[1][3:] and rates[0][2] != rates[1][2]
    assert (
        f"continuing after step 3; from there on the learning rate has the {schedule} schedule over 8 steps, before "
        "that over 4, so the result is not that of one run of 8 steps" in capsys.readouterr().err
    )


def test_the_first_step_after_the_resume_point_has_the_rate_of_the_new_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, recipe(4, "linear"))
    rates: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **named: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    longer = recipe(8, "linear")
    run(tmp_path, longer, resume=True)
    # torch takes a step of rate 0 to load the state
    assert rates[-5:] == pytest.approx([longer.train.learning_rate * (8 - n) / 8 for n in range(3, 8)])


def test_an_unfinished_run_may_be_lengthened_or_shortened(tmp_path: Path) -> None:
    for steps in (4, 8):
        straight = run(tmp_path / f"straight-{steps}", recipe(steps))
        out = tmp_path / f"out-{steps}"
        kill_at(4, out, recipe(6))
        assert_identical(weights(run(out, recipe(steps), resume=True).model), weights(straight.model))
    kill_at(4, tmp_path / "out", recipe(6))
    with pytest.raises(TrainingError, match=r"step-3: expected train\.steps of at least 3, .* got 2; raise"):
        run(tmp_path / "out", recipe(2), resume=True)


def test_a_lengthened_run_that_was_interrupted_continues(tmp_path: Path) -> None:
    straight = run(tmp_path / "straight", recipe(12))
    run(tmp_path / "out", recipe(4))
    before = weights(load_checkpoint(tmp_path / "out/checkpoint", REGISTRY)[0])
    with pytest.raises(Interrupted), patch("dreamkit.training.run.add_resume_point"):
        run(tmp_path / "out", recipe(12), resume=True, on_log=interrupt_at(8))
    assert_identical(weights(load_checkpoint(tmp_path / "out/checkpoint", REGISTRY)[0]), before)
    longer = run(tmp_path / "out", recipe(12), resume=True)
    assert_identical(weights(longer.model), weights(straight.model))
    assert without_times(longer.log) == without_times(straight.log)


def test_a_run_without_resume_points_is_not_lengthened(tmp_path: Path) -> None:
    run(tmp_path, recipe(2, save_every=0))
    with pytest.raises(TrainingError, match=r"left no resume point .*start a new run .*init=\S*checkpoint$"):
        run(tmp_path, recipe(4), resume=True)


@pytest.mark.parametrize("steps", [4, 8])
def test_other_settings_are_named_with_both_values_and_a_remedy(tmp_path: Path, steps: int) -> None:
    run(tmp_path, recipe(4))
    with pytest.raises(TrainingError) as error:
        run(tmp_path, recipe(steps, learning_rate=0.5), resume=True)
    folder = tmp_path / ("checkpoint" if steps == 4 else "checkpoints/step-3")
    assert str(error.value) == (
        f"{folder}: 1 setting of the recipe differs from the run to resume; set it back, or start a new run from its "
        f"weights with --out NEW init={folder}:\n  train.learning_rate: was 0.01, is 0.5"
    )


def test_a_damaged_checkpoint_of_a_finished_run_is_named(tmp_path: Path) -> None:
    run(tmp_path, recipe(4))
    (tmp_path / "checkpoint/dreamkit.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint(.|\n)*--resume then continues from \S*step-3"):
        run(tmp_path, recipe(8), resume=True)
