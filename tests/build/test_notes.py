"""Notes about valid recipes: a check and a run that print them go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dreamkit.build.notes import machine_notes, recipe_notes
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry

DIGITS = "digits/stage1"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize(("warmup", "is_noted"), [(0, False), (5, False), (6, True)])
def test_a_warm_up_longer_than_the_run_is_a_note(registry: Registry, warmup: int, is_noted: bool) -> None:
    recipe = load_recipe(DIGITS, ["train.steps=5", f"train.warmup={warmup}"], registry)
    notes = recipe_notes(recipe)
    assert len(notes) == is_noted
    assert all("command line: train.warmup" in note and "(5 steps)" in note for note in notes)


@pytest.mark.parametrize("processes", [1, 4])
def test_more_workers_than_cores_are_a_note_of_this_machine(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr("dreamkit.build.notes.usable_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    for workers, count in ((8 // processes, 0), (8 // processes + 1, 1)):
        recipe = load_recipe(DIGITS, [f"train.workers={workers}"], registry)
        assert len(machine_notes(recipe)) == count and recipe_notes(recipe) == []


def test_check_prints_only_notes_that_hold_on_every_machine(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("check", DIGITS, "train.warmup=9000", "train.workers=256")
    assert code == 0
    assert "a warm-up of 9000 steps is longer than the run (200 steps)" in out and "cores" not in out


def test_train_prints_notes_and_goes_on(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    settings = ("train.steps=1", "train.batch_size=2", "train.warmup=3")
    code, _, err = run("train", DIGITS, *settings, "--out", tmp_path / "run")
    assert code == 0 and "a warm-up of 3 steps" in " ".join(err.split())
