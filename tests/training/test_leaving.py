"""Runs that an error or interrupt ends before their last step: the last finished step is saved, and continues."""

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import layouts
import runs
from dreamkit.data import samples
from dreamkit.data.document_reads import read_document
from dreamkit.errors import DocumentError, OutputError, TrainingError, with_notes
from dreamkit.interrupts import Interrupted
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.storage.writing import writing
from dreamkit.training.loop import TrainingLoop
from dreamkit.training.run_log import TIMES
from runs import assert_identical, interrupt_at, kill_at, run, weights

STEPS = 5


class Stop(Exception):
    pass


def without_times(log: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in log]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    recipe = layouts.recipe(steps=STEPS, global_batch=2, micro_batch=1, packing=False, log_every=2)
    return replace(recipe, loss=replace(recipe.loss, condition_drop=0.5))


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    result = run(tmp_path_factory.mktemp("straight"), recipe)
    return weights(result.model), without_times(result.log)


def fail_in_call(number: int, function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """Return a function that raises in its call of this number, after its work."""
    calls = iter(range(10**6))

    def call(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if next(calls) == number:
            raise error
        return result

    return call


@pytest.mark.parametrize("reads", [0, 1, 4, 2 * STEPS - 1])
def test_a_bad_document_ends_a_run_whose_last_step_is_saved(
    tmp_path: Path,
    recipe: Recipe,
    straight: tuple[dict[str, Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    reads: int,
) -> None:
    error = DocumentError("cut.png is cut")
    with monkeypatch.context() as patched, pytest.raises(DocumentError) as caught:
        patched.setattr(samples, "read_document", fail_in_call(reads, read_document, error))
        run(tmp_path, replace(recipe, train=replace(recipe.train, on_error="stop")))
    message = with_notes(caught.value)
    (point,) = (tmp_path / "checkpoints").iterdir()
    step = point.name.replace("-", " ")
    assert message == (
        f"cut.png is cut; set train.on_error=skip to skip bad documents; {step} is saved in {point}; "
        "correct the data, then continue with --resume --changed-data"
    )
    torch.manual_seed(123)  # a new process has other random numbers
    resumed = run(tmp_path, recipe, resume=True)
    assert_identical(weights(resumed.model), straight[0])
    assert without_times(resumed.log) == straight[1]


@pytest.mark.parametrize("error", [Stop("a plug-in failed"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("number", [0, 3, 4, 2 * STEPS - 1])
def test_a_step_that_raises_leaves_no_trace_in_the_saved_one(
    tmp_path: Path,
    recipe: Recipe,
    straight: tuple[dict[str, Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: BaseException,
) -> None:
    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr(DreamModel, "forward", fail_in_call(number, DreamModel.forward, error))
        run(tmp_path, recipe)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{number // 2}"]
    resumed = run(tmp_path, recipe, resume=True)
    assert_identical(weights(resumed.model), straight[0])
    assert without_times(resumed.log) == straight[1]


def test_an_error_within_an_update_of_the_weights_saves_nothing(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = fail_in_call(3, torch.optim.AdamW.step, Stop())
    step.__qualname__ = "AdamW.step"
    monkeypatch.setattr("torch.optim.AdamW.step", step)
    with pytest.raises(Stop) as caught:
        run(tmp_path, replace(recipe, train=replace(recipe.train, save_every=2)))
    points = tmp_path / "checkpoints"
    assert caught.value.__notes__ == [
        "no resume point was saved: training stopped within an update of the weights; the last one is "
        f"{points / 'step-2'}; continue with --resume"
    ]
    assert [path.name for path in points.iterdir()] == ["step-2"]


def test_an_error_while_saving_is_a_note_and_keeps_what_is_there(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    recipe = replace(recipe, train=replace(recipe.train, save_every=1, log_every=1))
    kill_at(2, tmp_path, recipe)
    monkeypatch.setattr("dreamkit.training.point_writer.write_own_files", no_space)
    with pytest.raises(OSError) as caught:
        run(tmp_path, recipe, resume=True)
    assert "no resume point was saved: [Errno 28]" in caught.value.__notes__[0]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


FULL, QUOTA, DENIED = errno.ENOSPC, errno.EDQUOT, errno.EACCES


@pytest.mark.parametrize("is_of_library", [False, True], ids=["system", "library"])
@pytest.mark.parametrize(
    ("of_log", "of_point"),
    [(FULL, FULL), (QUOTA, QUOTA), (QUOTA, DENIED), (FULL, QUOTA), (DENIED, None)],
    ids=lambda number: errno.errorcode.get(number, "in use"),
)
def test_a_second_reason_is_shown_unless_it_is_the_first_one(
    tmp_path: Path,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    of_log: int,
    of_point: int | None,
    is_of_library: bool,
) -> None:
    """A disk that is full for the log and a resume point is one problem; a folder of another user is a second one."""

    def fail_on_log(*_: Any) -> None:
        with writing(tmp_path / "log.jsonl"):
            raise OSError(of_log, os.strerror(of_log))

    def fail_on_point(*_: Any, **named: Any) -> None:
        if of_point is None:
            raise OutputError("the folder is in use")
        with writing(tmp_path / "checkpoints"):
            if is_of_library:
                raise RuntimeError(f"I/O error: {os.strerror(of_point)} (os error {of_point})")
            raise OSError(of_point, os.strerror(of_point))

    monkeypatch.setattr("dreamkit.training.point_writer.write_own_files", fail_on_point)
    with pytest.raises(OutputError) as caught:
        run(tmp_path, recipe, on_log=fail_on_log)
    message = with_notes(caught.value)
    assert message.startswith(f"cannot write {tmp_path / 'log.jsonl'}: {os.strerror(of_log)}")
    second = "the folder is in use" if of_point is None else os.strerror(of_point)
    _, _, note = message.partition("; no resume point was saved")
    assert (second in note) == (of_point != of_log)
    assert note or of_point == of_log


def test_an_error_after_the_last_step_saves_it(
    tmp_path: Path, recipe: Recipe, straight: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(
            "dreamkit.training.run.save_checkpoint", fail_in_call(0, lambda *_, **named: None, Stop())
        )
        run(tmp_path, recipe)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{STEPS}"]
    resumed = run(tmp_path, recipe, resume=True)
    assert_identical(weights(resumed.model), straight[0])
    assert without_times(resumed.log) == straight[1]


@pytest.mark.parametrize(("log_every", "save_every"), [(3, 2), (4, 1), (5, 3)])
def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(
    tmp_path: Path, recipe: Recipe, log_every: int, save_every: int
) -> None:
    def with_intervals(**intervals: int) -> Recipe:
        return replace(recipe, train=replace(recipe.train, **intervals))

    expected = run(tmp_path / "straight", with_intervals(log_every=log_every)).log
    kill_at(4, tmp_path / "killed", with_intervals(log_every=4, save_every=save_every))
    lines = (tmp_path / "killed/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4]
    resumed = run(tmp_path / "killed", with_intervals(log_every=log_every), resume=True)
    assert without_times(resumed.log) == without_times(expected)


def test_a_finished_run_is_loaded_and_not_trained(
    tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, recipe)
    capsys.readouterr()
    monkeypatch.setattr("dreamkit.training.run.TrainingLoop", None)
    again = run(tmp_path, recipe, resume=True)
    assert again.was_finished and not first.was_finished and not again.model.training
    assert (again.checkpoint, again.log) == (first.checkpoint, first.log)
    assert_identical(weights(again.model), weights(first.model))
    assert f"the run in {tmp_path} is finished; nothing was trained" in capsys.readouterr().err
    with pytest.raises(
        TrainingError, match=r"1 setting of the recipe differs(.|\n)*train\.steps: was 5, is 4"
    ):
        run(tmp_path, replace(recipe, train=replace(recipe.train, steps=4)), resume=True)
    with pytest.raises(
        TrainingError, match=r"its run is finished; lengthen it with --resume .*, or pass a new"
    ):
        run(tmp_path, recipe)


def test_settings_of_generation_may_change_on_resume(tmp_path: Path, recipe: Recipe) -> None:
    """A release may change their defaults."""
    earlier = replace(recipe, generation=replace(recipe.generation, steps=50, guidance=2.0))
    with pytest.raises(runs.Interrupted):
        run(tmp_path, earlier, on_log=interrupt_at(2))
    assert run(tmp_path, recipe, resume=True).model.recipe == recipe
    finished = run(tmp_path, earlier, resume=True)
    assert finished.was_finished and finished.model.recipe == recipe


def test_resume_is_offered_only_where_there_is_a_resume_point(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "checkpoints/.step-1.partial").mkdir(parents=True)
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, recipe)
    assert "--resume" not in str(caught.value)
    (tmp_path / "checkpoints/.step-1.partial").rmdir()
    with pytest.raises(runs.Interrupted):
        run(tmp_path / "run", recipe, on_log=interrupt_at(2))
    with pytest.raises(TrainingError, match="continue its run with --resume or pass a new folder"):
        run(tmp_path / "run", recipe)


def test_a_signal_waits_for_the_end_of_a_step(
    tmp_path: Path, recipe: Recipe, straight: tuple[dict[str, Any], Any]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="interrupted by SIGTERM") as caught:
        run(tmp_path, recipe, on_log=lambda entry: os.kill(os.getpid(), signal.SIGTERM))
    assert caught.value.__notes__ == [
        f"step 2 is saved in {tmp_path / 'checkpoints/step-2'}; continue with --resume"
    ]
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = run(tmp_path, recipe, resume=True)
    assert_identical(weights(resumed.model), straight[0])
    assert without_times(resumed.log) == straight[1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "out of memory in a forward pass of 3 rows of [0-9]+ tokens, gradient checkpointing off; "
            "lower train.micro_batch or train.max_length, or set train.gradient_checkpointing: true",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 8 bytes"
            ),
            "out of memory in a forward pass of .*; lower train.micro_batch",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a process that reads data was killed",
        ),
    ],
)
def test_too_little_memory_is_a_user_error_and_the_last_step_is_saved(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, message: str
) -> None:
    with monkeypatch.context() as patched, pytest.raises(TrainingError, match=message) as caught:
        patched.setattr(TrainingLoop, "backward", fail_in_call(1, TrainingLoop.backward, error))
        run(tmp_path, recipe)
    assert "is saved in" in with_notes(caught.value)


def test_a_process_that_sees_a_saved_point_late_does_not_save_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamkit.training.leaving.gathered", lambda value: [True, value])
    monkeypatch.setattr(TrainingLoop, "save", pytest.fail)
    with pytest.raises(runs.Interrupted) as caught:
        run(tmp_path, layouts.recipe(steps=4), on_log=interrupt_at(2))
    assert "step 2 is saved in" in with_notes(caught.value)
