"""Resume points that are written while training goes on: same results, and no point that is not whole."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import layouts
from dreamkit.checkpoints.content import TensorFile
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import OutputError, TrainingError, with_notes
from dreamkit.runs.log_entries import LogEntry
from dreamkit.runs.run_paths import resume_points
from dreamkit.training import point_writer, spare_memory
from dreamkit.training.point_writer import PointWriter
from failing_writes import content
from runs import Interrupted, assert_identical, interrupt_at, run, weights

SETTINGS = {"steps": 6, "save_every": 2, "log_every": 1}
WRITE = point_writer.write_own_files


@pytest.fixture
def in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write even small points in the background."""
    monkeypatch.setattr(point_writer, "LEAST_BYTES", 0)


class Writes:
    """Writes of points that wait until `allowed` is set; they keep the names of their threads."""

    def __init__(self, patch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.allowed, self.threads, self.error = threading.Event(), [], error
        patch.setattr(point_writer, "write_own_files", self)

    def __call__(self, folder: Path, files: Any) -> Any:
        self.threads.append(threading.current_thread())
        assert self.allowed.wait(60)
        if self.error is not None:
            raise self.error
        return WRITE(folder, files)


def names(out: Path) -> list[str]:
    return [point.name for point in resume_points(out)]


@pytest.mark.usefixtures("in_background")
def test_points_written_in_the_background_are_those_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = layouts.recipe(keep_last=0, **SETTINGS)
    background = run(tmp_path / "background", recipe)
    monkeypatch.setattr(point_writer, "LEAST_BYTES", 2**60)
    at_once = run(tmp_path / "at once", recipe)
    assert_identical(weights(background.model), weights(at_once.model))
    for name in ("checkpoints/step-2", "checkpoints/step-4", "checkpoint"):
        assert content(tmp_path / "background" / name) == content(tmp_path / "at once" / name)


@pytest.mark.usefixtures("in_background")
def test_training_goes_on_while_a_point_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, seen = Writes(monkeypatch), {}

    def on_log(entry: LogEntry) -> None:
        seen[entry["step"]] = names(tmp_path)
        if entry["step"] == 4:
            writes.allowed.set()
            writes.threads[0].join()

    result = run(tmp_path, layouts.recipe(steps=6, save_every=2, log_every=1, keep_last=0), on_log=on_log)
    # step 4 is saved after the line of its log: that waits for the point before
    assert [seen[step] for step in (2, 3, 4)] == [[]] * 3 and "step-2" in seen[5]
    assert names(tmp_path) == ["step-2", "step-4"]
    for point in resume_points(tmp_path):
        load_checkpoint(point)
    assert threading.main_thread() not in writes.threads
    assert result.checkpoint.is_dir() and not [*tmp_path.rglob(".step*")]


@pytest.mark.usefixtures("in_background")
def test_a_point_is_complete_at_the_next_meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, seen = Writes(monkeypatch), {}

    def on_log(entry: LogEntry) -> None:
        seen[entry["step"]] = names(tmp_path)
        if entry["step"] == 3:
            writes.allowed.set()
            writes.threads[0].join()

    run(tmp_path, layouts.recipe(steps=6, save_every=2, log_every=1), on_log=on_log)
    assert (seen[3], seen[4]) == ([], ["step-2"])


@pytest.mark.usefixtures("in_background")
def test_an_error_of_the_thread_stops_at_the_next_meeting_and_is_saved_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch, OutputError(f"cannot write {tmp_path}/checkpoints/step-2: No space"))
    steps: list[int] = []

    def on_log(entry: LogEntry) -> None:
        steps.append(entry["step"])
        if entry["step"] == 3:
            writes.allowed.set()
            writes.threads[0].join()
            monkeypatch.setattr(point_writer, "write_own_files", WRITE)

    with pytest.raises(OutputError, match="step-2: No space") as caught:
        run(tmp_path, layouts.recipe(steps=6, save_every=2, log_every=1), on_log=on_log)
    assert steps == [1, 2, 3] and names(tmp_path) == ["step-3"]
    assert "step 3 is saved in " in with_notes(caught.value)
    assert not [*tmp_path.rglob(".step*")]
    straight = run(tmp_path / "straight", layouts.recipe(steps=6, save_every=0, log_every=1))
    resumed = run(tmp_path, layouts.recipe(steps=6, save_every=2, log_every=1), resume=True)
    assert_identical(weights(resumed.model), weights(straight.model))


@pytest.mark.usefixtures("in_background")
@pytest.mark.parametrize("is_failing", [False, True])
def test_the_end_of_a_run_waits_for_the_last_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_failing: bool
) -> None:
    writes = Writes(monkeypatch, OutputError("cannot write step-4: No space") if is_failing else None)
    finish, waited = PointWriter.finish, []

    def allow(self: PointWriter) -> None:
        if writes.threads:
            waited.append(names(tmp_path))
            writes.allowed.set()
        finish(self)

    monkeypatch.setattr(PointWriter, "finish", allow)
    recipe = layouts.recipe(steps=6, save_every=4, log_every=1)
    if is_failing:
        with pytest.raises(OutputError, match="step-4: No space"):
            run(tmp_path, recipe)
        assert names(tmp_path) == []
    else:
        run(tmp_path, recipe)
        assert names(tmp_path) == ["step-4"]
    assert waited[0] == []


@pytest.mark.usefixtures("in_background")
def test_an_error_in_training_waits_for_the_point_and_saves_another(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, layouts.recipe(**SETTINGS), on_log=interrupt_at(3))
    assert names(tmp_path) == ["step-2", "step-3"]


@pytest.mark.usefixtures("in_background")
def test_a_point_without_room_for_a_copy_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(point_writer, "has_room", lambda size: False)
    writes = Writes(monkeypatch)
    writes.allowed.set()
    run(tmp_path, layouts.recipe(**SETTINGS))
    assert {*writes.threads} == {threading.main_thread()} and names(tmp_path) == ["step-2", "step-4"]
    assert "training waited for resume points: memory had no room for a copy of" in capsys.readouterr().err


def test_room_is_half_of_the_available_memory_shared_by_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(spare_memory, "GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(spare_memory, "GROUPS", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert not spare_memory.has_room(1)
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    4000 kB\n")
    assert spare_memory.has_room(2000 * 1024) and not spare_memory.has_room(2000 * 1024 + 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert spare_memory.has_room(500 * 1024) and not spare_memory.has_room(500 * 1024 + 1)
    job = tmp_path / "slurm/job"  # the process is in a group inside it
    (job / "step").mkdir(parents=True)
    (tmp_path / "cgroup").write_text("1:cpu:/\n0::/slurm/job/step\n")
    for folder in (tmp_path, job):
        for name, text in (("max", "max"), ("current", "300"), ("stat", "anon 100\ninactive_file 100\n")):
            (folder / f"memory.{name}").write_text(text)
    assert spare_memory.has_room(500 * 1024)
    (tmp_path / "memory.max").write_text("1000")  # of a container
    assert spare_memory.has_room(100) and not spare_memory.has_room(101)
    (job / "memory.max").write_text("600")
    assert spare_memory.has_room(50) and not spare_memory.has_room(51)


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "expected"),
    [(2, None, [6, 7]), (1, 3, [3, 6, 7]), (0, None, [1, 2, 3, 4, 5, 6, 7]), (0, 2, [1, 2, 3, 4, 5, 6, 7])],
)
def test_resume_points_stay(
    tmp_path: Path, keep_last: int, keep_every: int | None, expected: list[int]
) -> None:
    run(tmp_path, layouts.recipe(steps=8, save_every=1, keep_last=keep_last, keep_every=keep_every))
    assert names(tmp_path) == [f"step-{step}" for step in expected]


def test_a_resumed_run_may_keep_other_points(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, layouts.recipe(**SETTINGS | {"save_every": 1}), on_log=interrupt_at(3))
    run(tmp_path, layouts.recipe(**SETTINGS | {"save_every": 1}, keep_last=1, keep_every=3), resume=True)
    assert names(tmp_path) == ["step-3", "step-5"]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("full_disk")
def test_space_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"cannot write {}: expected [\d.]+ kB of free space, got 1.0 kB; free some space or"
    with pytest.raises(OutputError, match=message.format(tmp_path / "checkpoints/step-2")) as caught:
        run(tmp_path, layouts.recipe(**SETTINGS))
    assert with_notes(caught.value).count("of free space") == 1
    assert names(tmp_path) == [] and not [*(tmp_path / "checkpoints").glob("*")]
    with pytest.raises(OutputError, match=message.format(tmp_path / "other/checkpoint")):
        run(tmp_path / "other", layouts.recipe(steps=2))
    assert not (tmp_path / "other/checkpoint").exists()


def test_the_space_that_is_expected_is_that_of_the_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(point_writer, "require_space", lambda path, size: sizes.append(size))
    run(tmp_path, layouts.recipe(**SETTINGS))
    files = Manifest.read(tmp_path / "checkpoints/step-2").files
    written = sum(record["size"] for name, record in files.items() if name.endswith(".safetensors"))
    assert written * 0.8 < sizes[0] < written  # without the headers


@pytest.mark.usefixtures("in_background")
def test_a_point_whose_copy_fails_is_dropped_and_saved_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: TensorFile) -> TensorFile:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(TensorFile, "copied", fail)
    with pytest.raises(TrainingError, match="out of memory") as caught:
        run(tmp_path, layouts.recipe(**SETTINGS))
    assert "step 2 is saved in " in with_notes(caught.value)
    assert names(tmp_path) == ["step-2"] and not [*tmp_path.rglob(".step*")]
    load_checkpoint(resume_points(tmp_path)[0])


@pytest.mark.usefixtures("in_background")
def test_an_error_of_the_thread_does_not_replace_the_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(monkeypatch, RuntimeError("a bug"))

    def on_log(entry: LogEntry) -> None:
        if entry["step"] == 3:
            writes.allowed.set()
            raise Interrupted

    with pytest.raises(Interrupted) as caught:
        run(tmp_path, layouts.recipe(**SETTINGS), on_log=on_log)
    assert "a bug" in with_notes(caught.value) and names(tmp_path) == []
