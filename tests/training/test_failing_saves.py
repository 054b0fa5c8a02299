"""A save that fails at any operation leaves the earlier resume point whole, and the run continues bit by bit."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

import pytest

import layouts
import runs
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import OutputError
from dreamkit.runs.run_paths import resume_points
from failing_writes import content, failing_operation


def test_each_operation_of_a_save_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume point, the next line of the log and the final checkpoint are written."""
    recipe = layouts.recipe(steps=3, save_every=2, global_batch=2)
    straight = runs.weights(runs.run(tmp_path / "straight", recipe).model)
    runs.kill_at(2, begun := tmp_path / "begun", layouts.recipe(steps=3, save_every=1, global_batch=2))
    assert [point.name for point in resume_points(begun)] == ["step-1"]
    failed: list[str] = []
    resumed: list[dict[str, bytes | None]] = []  # what the runs that were resumed had saved
    for number in count(1):
        out = tmp_path / "out"
        shutil.copytree(begun, out)
        with failing_operation(out, number, monkeypatch, writes=True) as failing:
            try:
                runs.run(out, recipe, resume=True)
            except OutputError as error:
                assert failing.failed and f"cannot write {out}" in str(error), error
        if not failing.failed:
            break
        failed.append(failing.failed)
        assert resume_points(out), failing.failed
        for point in resume_points(out):
            Manifest.read(point)  # which compares all files
        assert not [path for path in content(out / "checkpoints") if "/." in f"/{path}"], failing.failed
        saved = {name: data for name, data in content(out).items() if name.startswith("checkpoint")}
        if saved not in resumed:
            resumed.append(saved)
            result = runs.run(out, recipe, resume=True)
            runs.assert_identical(runs.weights(result.model), straight)
        shutil.rmtree(out)
    for kind in ("open", "write", "os.mkdir", "os.rename", "fsync"):
        assert any(name.startswith(kind) for name in failed), kind
