"""The states of runs, from the files in their folders and the processes that write them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import layouts
from dreamkit.runs.summaries import find_runs, summary
from dreamkit.storage.locks import exclusive, is_locked
from dreamkit.training.preempted import mark_preempted
from releases.using import RELEASES, copy_release
from runs import Interrupted, interrupt_at, kill_at, run

WAITING = """
import sys, time
from pathlib import Path
import layouts, runs
def wait(entry):
    if entry["step"] == 3:
        print("waiting", flush=True)
        time.sleep(600)
runs.run(Path(sys.argv[1]), layouts.recipe(steps=5, save_every=2), on_log=wait)
"""


def test_a_run_is_running_until_it_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "a"
    helpers = Path(layouts.__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(helpers), str(helpers.parent), *sys.path]),
    }
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(out)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and "waiting" in process.stdout.readline()
            running = summary(out)
            assert (running.state, running.step, running.steps, running.is_late) == ("running", 3, 5, False)
            assert summary(out, datetime.now(UTC) + timedelta(hours=3)).is_late
        finally:
            process.send_signal(signal.SIGKILL)
    killed = summary(out)
    assert (killed.state, killed.step, killed.resume_step, killed.reason) == ("ended early", 3, 2, "")
    assert killed.figures["lm"] > 0 and killed.problems == []
    assert "▶ training" in (out / "index.html").read_text()


def test_a_run_that_ended_has_its_state_and_reason(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=4)
    with pytest.raises(Interrupted):
        run(tmp_path / "a", recipe, on_log=interrupt_at(2))
    ended = summary(tmp_path / "a")
    assert (ended.state, ended.step, ended.steps, ended.resume_step) == ("ended early", 2, 4, 2)
    assert "step 2 is saved" in ended.reason
    mark_preempted(tmp_path / "a/checkpoints/step-2", True)
    assert summary(tmp_path / "a").state == "preempted"
    run(tmp_path / "a", recipe, resume=True)
    finished = summary(tmp_path / "a")
    assert (finished.state, finished.step, finished.reason, finished.problems) == ("finished", 4, "", [])
    longer = replace(recipe, train=replace(recipe.train, steps=6))
    kill_at(3, tmp_path / "b", layouts.recipe(steps=4, save_every=5))
    assert summary(tmp_path / "b").state == "failed"
    with pytest.raises(Interrupted):
        run(tmp_path / "a", longer, resume=True, on_log=interrupt_at(5))
    lengthened = summary(tmp_path / "a")
    assert (lengthened.state, lengthened.step, lengthened.steps) == ("ended early", 5, 6)


def test_a_run_of_an_earlier_release_has_a_summary(tmp_path: Path) -> None:
    copy_release(RELEASES[0], tmp_path / "release")
    earlier = summary(tmp_path / "release/run")
    assert earlier.state == "ended early" and earlier.resume_step == 2 and earlier.steps is not None
    assert earlier.problems == []


def test_damaged_files_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    kill_at(3, tmp_path, layouts.recipe(steps=5, save_every=2))
    point = tmp_path / "checkpoints/step-2"
    (tmp_path / "run.json").write_text("[]")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write("damaged\n")
    (tmp_path / "held_out.jsonl").mkdir()
    (point / "trainer/state.json").write_text("{")
    damaged = summary(tmp_path)
    assert (damaged.state, damaged.step, damaged.steps) == ("ended early", 3, 5)
    for name in ("run.json", "log.jsonl", "held_out.jsonl", "trainer/state.json"):
        assert any(f"{name}: " in problem or f"{name} " in problem for problem in damaged.problems), name
    (point / "dreamkit.json").write_text("{")
    assert any(str(point) in problem for problem in summary(tmp_path).problems)


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    for name in ("b", "a/x", "a/y/z", ".hidden", "a/x/checkpoint"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "log.jsonl").write_text("")
    (tmp_path / "c/checkpoints/step-3").mkdir(parents=True)
    (tmp_path / "nothing/checkpoints/step-x").mkdir(parents=True)
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    problems: list[str] = []
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path, problems)]
    assert found == ["a/x", "a/y/z", "b", "c"] and problems == []
    assert [*find_runs(tmp_path / "b", problems)] == [tmp_path / "b"]


def test_a_look_at_a_lock_leaves_no_trace_and_keeps_nobody_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_locked(folder) and not [*tmp_path.iterdir()]
    with exclusive(folder):
        assert is_locked(folder)
    assert not is_locked(folder)
    code = (
        "import sys, pathlib; from dreamkit.storage.locks import is_locked; print('on', flush=True)\n"
        f"while True: is_locked(pathlib.Path({str(folder)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as looking:
        try:
            assert looking.stdout is not None and looking.stdout.readline()
            end = time.monotonic() + 1
            while time.monotonic() < end:
                with exclusive(folder):
                    pass
        finally:
            looking.kill()


def test_no_module_of_runs_and_pages_loads_torch() -> None:
    import dreamkit.pages
    import dreamkit.runs

    names = [
        f"{package.__name__}.{path.stem}"
        for package in (dreamkit.runs, dreamkit.pages)
        for path in Path(str(package.__file__)).parent.glob("*.py")
    ]
    code = f"import sys, {', '.join(names)}; print(*{{'torch', 'transformers', 'accelerate'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
    assert len(names) > 10
