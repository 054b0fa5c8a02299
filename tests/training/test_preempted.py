"""A run that a cluster ends is marked in the state of its resume point, until it goes on."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import layouts
import runs
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.interrupts import Interrupted
from dreamkit.runs.run_paths import resume_points
from dreamkit.training.preempted import mark_preempted
from dreamkit.training.resume_state import read_state
from failing_writes import content
from runs import assert_identical, interrupt_at, kill_at, run, weights


@pytest.mark.parametrize("save_every", [1, 5], ids=["saved before", "not yet saved"])
@pytest.mark.parametrize(
    ("number", "preempted"),
    [(signal.SIGTERM, True), (signal.SIGUSR1, True), (signal.SIGINT, False), (signal.SIGHUP, False)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_signal_of_a_cluster_is_marked_until_the_run_goes_on(
    tmp_path: Path, number: signal.Signals, preempted: bool, save_every: int
) -> None:
    recipe = layouts.recipe(steps=4, save_every=save_every)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted) as caught:
            run(tmp_path, recipe, on_log=lambda entry: os.kill(os.getpid(), number))
    finally:
        signal.signal(signal.SIGINT, before)
    *_, point = resume_points(tmp_path)
    assert caught.value.number == number and read_state(point).preempted is preempted
    Manifest.read(point)  # which compares all files
    with pytest.raises(OSError, match="later"):
        run(tmp_path, replace(recipe, train=replace(recipe.train, save_every=0)), resume=True, on_log=fail)
    assert not any(read_state(point).preempted for point in resume_points(tmp_path))


def fail(entry: object) -> None:
    raise OSError("later")


def test_a_run_whose_marked_point_is_replaced_continues_bit_by_bit(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=4, save_every=2)
    straight = run(tmp_path / "straight", recipe)
    out = tmp_path / "out"
    kill_at(3, out, recipe)
    (point,) = resume_points(out)
    before = content(point)
    mark_preempted(point, True)
    assert {name for name, data in content(point).items() if data != before[name]} == {
        "dreamkit.json",
        "trainer/state.json",
    }
    # as if the process had been killed between the two renames
    shutil.copytree(point, point.with_name(".step-2.partial"))
    point.rename(point.with_name(".step-2.replaced"))
    assert resume_points(out) == []
    resumed = run(out, recipe, resume=True)
    assert_identical(weights(resumed.model), weights(straight.model))


def test_an_ordinary_error_marks_nothing(tmp_path: Path) -> None:
    with pytest.raises(runs.Interrupted):
        run(tmp_path, layouts.recipe(steps=4), on_log=interrupt_at(2))
    (point,) = resume_points(tmp_path)
    assert not read_state(point).preempted
