"""Resume points that cannot be written, with `train.on_save_error`: nothing is lost, and the end is the same."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import layouts
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import OutputError, with_notes
from dreamkit.runs.run_paths import resume_points
from dreamkit.storage.writing import writing
from dreamkit.training import point_writer, run as run_module
from runs import assert_identical, run, weights


def fail_at(steps: set[int], patch: pytest.MonkeyPatch) -> list[int]:
    """Let the resume points after `steps` fail; return the list of those that are tried."""
    tried: list[int] = []
    begin = point_writer._begin

    def full(partial: Path, state: Any, *rest: Any) -> None:
        tried.append(state.step)
        begin(partial, state, *rest)
        if state.step in steps:
            with writing(partial / "trainer"):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    patch.setattr(point_writer, "_begin", full)
    return tried


@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in the background"])
def test_a_run_may_go_on_without_some_resume_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_background: bool
) -> None:
    settings = layouts.recipe(steps=6, save_every=1, on_save_error="continue")
    straight = weights(run(tmp_path / "straight", settings).model)
    if in_background:
        monkeypatch.setattr(point_writer, "LEAST_BYTES", 0)
    tried = fail_at({2, 3, 5}, monkeypatch)
    capsys.readouterr()
    result = run(tmp_path / "out", settings)
    assert_identical(weights(result.model), straight)
    assert tried == [1, 2, 3, 4, 5]
    assert [point.name for point in resume_points(tmp_path / "out")] == ["step-1", "step-4"]
    for point in resume_points(tmp_path / "out"):
        Manifest.read(point)
    assert not [*(tmp_path / "out/checkpoints").glob(".*")]
    err = capsys.readouterr().err
    assert err.count("cannot write ") == err.count("; training goes on, and tries again") == 1


def test_a_run_stops_at_a_resume_point_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at({2, 3}, monkeypatch)
    with pytest.raises(OutputError) as caught:
        run(tmp_path, layouts.recipe(steps=6, save_every=1))
    assert "checkpoints/step-2" in str(caught.value) and "quota" in str(caught.value)
    assert [point.name for point in resume_points(tmp_path)] == ["step-1"]


def test_the_checkpoint_at_the_end_must_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **named: Any) -> None:
        raise OutputError("cannot write it")

    settings = layouts.recipe(steps=4, save_every=2, on_save_error="continue")
    with monkeypatch.context() as patched, pytest.raises(OutputError) as caught:
        patched.setattr(run_module, "save_checkpoint", full)
        run(tmp_path, settings)
    assert f"step 4 is saved in {tmp_path / 'checkpoints/step-4'}" in with_notes(caught.value)
    run(tmp_path, settings, resume=True)


def test_an_interrupted_run_says_that_it_was_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(entry: Any) -> None:
        if entry["step"] == 2:
            raise RuntimeError("a plug-in failed")

    fail_at({2}, monkeypatch)
    with pytest.raises(RuntimeError) as caught:
        run(tmp_path, layouts.recipe(steps=4, save_every=1, on_save_error="continue"), on_log=stop)
    assert "no resume point was saved: cannot write" in with_notes(caught.value)
    assert "the last one is" in with_notes(caught.value)
