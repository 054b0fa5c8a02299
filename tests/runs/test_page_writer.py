"""The page and record of real runs: current while they go on, whole at their end, and never a reason to stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

import layouts
from dreamkit.errors import TrainingError
from dreamkit.pages.chart import figure
from dreamkit.runs import page_writer
from dreamkit.runs.log_entries import LogEntry
from dreamkit.runs.record import read_record
from runs import Interrupted, interrupt_at, kill_at, run
from watched_runs import held_out_log, watched_recipe, watched_run


def page(out: Path) -> str:
    return (out / "index.html").read_text()


def test_a_run_has_a_record_and_a_page_from_its_start_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_writer, "LEAST", 0.0)
    monkeypatch.setattr(page_writer, "SHARE", 1.0)
    pages: list[str] = []
    run(tmp_path, layouts.recipe(steps=3), on_log=lambda entry: pages.append(page(tmp_path)))
    shown = [f"step {step} of 3" in text and "▶ training" in text for step, text in enumerate(pages)]
    assert shown == [True, True, True], "`on_log` is called before the page of its line"
    assert "✓ finished" in page(tmp_path) and "step 3 of 3 (100 %)" in page(tmp_path)
    assert (record := read_record(tmp_path)) is not None
    recipe = layouts.recipe(steps=3)
    assert (record.steps, record.global_batch, record.seed) == (3, 2, recipe.train.seed)
    assert record.recipe == json.loads(json.dumps(recipe.to_dict()))
    assert {"dreamkit-core", "torch", "dreamkit-diffusers"} <= record.versions.keys()
    assert [start["step"] for start in record.starts] == [0] and record.ended == ""


def test_a_fast_run_writes_few_pages_and_the_last_one_is_complete(tmp_path: Path) -> None:
    with (
        patch.object(page_writer, "LEAST", 1e9),
        patch.object(page_writer, "write_text", wraps=page_writer.write_text) as write_text,
    ):
        run(tmp_path, layouts.recipe(steps=6))
    assert write_text.call_count == 2, "at the start and at the end"
    assert "from" in page(tmp_path) and "step 6 of 6" in page(tmp_path)


def test_a_run_that_an_error_ends_names_it_and_the_resume_point(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=4)
    with pytest.raises(Interrupted):
        run(tmp_path, recipe, on_log=interrupt_at(2))
    assert (record := read_record(tmp_path)) is not None
    assert record.ended.startswith("Interrupted: no reason given; step 2 is saved in ")
    assert "■ ended early" in page(tmp_path) and "checkpoints/step-2; continue with --resume" in page(
        tmp_path
    )
    run(tmp_path, recipe, resume=True)
    assert (record := read_record(tmp_path)) is not None
    assert [start["step"] for start in record.starts] == [0, 2] and record.ended == ""
    assert "✓ finished" in page(tmp_path) and "resumed 1 time, last at step 2" in page(tmp_path)


def test_a_page_that_cannot_be_written_is_reported_once_and_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_writer, "LEAST", 0.0)
    monkeypatch.setattr(page_writer, "SHARE", 1.0)

    def block(entry: LogEntry) -> None:
        if entry["step"] == 1:
            (tmp_path / "index.html").unlink()
            (tmp_path / "index.html").mkdir()

    result = run(tmp_path, layouts.recipe(steps=4), on_log=block)
    assert len(result.log) == 4 and result.checkpoint.is_dir()
    printed = capsys.readouterr().err
    assert printed.count("the page of the run is not up to date: cannot write") == 1


def test_a_damaged_record_is_an_error_of_a_resumed_run(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=4, save_every=1)
    kill_at(2, tmp_path, recipe)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(TrainingError, match=r"run\.json: JSONDecodeError"):
        run(tmp_path, recipe, resume=True)
    (tmp_path / "run.json").unlink()
    run(tmp_path, recipe, resume=True)
    assert (record := read_record(tmp_path)) is not None and record.starts[0]["step"] == 1


def test_the_page_of_a_resumed_run_reads_what_is_left_of_the_held_out_losses(tmp_path: Path) -> None:
    recipe = watched_recipe(steps=5, draw_every=0, prompts=(), save_every=2)
    with patch("dreamkit.training.run.add_resume_point"), pytest.raises(Interrupted):
        watched_run(tmp_path, recipe, on_log=interrupt_at(4))
    assert [entry["step"] for entry in held_out_log(tmp_path)] == [1, 2, 3]
    watched_run(tmp_path, replace(recipe, train=replace(recipe.train, eval_every=5)), resume=True)
    *_, last = held_out_log(tmp_path)
    assert last["step"] == 5 and f"<dt>Loss, held-out</dt><dd>{figure(last['loss'])}</dd>" in page(tmp_path)
