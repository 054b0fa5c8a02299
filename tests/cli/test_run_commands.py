"""`dreamkit runs` and `dreamkit runs diff`: tables, JSON, a page, and clear sentences."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreamkit.runs.record import RunRecord, new_start
from dreamkit.storage.locks import exclusive

Command = Callable[..., tuple[int, str, str]]
RECIPE = {
    "data": [{"name": "pairs", "path": "${oc.env:DATA}/a.jsonl"}],
    "train": {"steps": 4, "learning_rate": 0.1},
}
RECORD = RunRecord(1, 0, 4, 2, 1, 1, "CPU", {"python": "3.11", "torch": "2.6"}, [new_start(0)], "", RECIPE)


def write_run(folder: Path, record: RunRecord = RECORD, *, steps: int = 3, rate: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    record.write(folder)
    entries = [{"step": n, "lm": rate / n, "denoising": None, "loss": rate / n} for n in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "held_out.jsonl").write_text('{"step": 2, "lm": 0.75, "denoising": null, "loss": 0.75}\n')
    for step in (1, 3):
        place = folder / f"drawings/step-{step}"
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "0.png")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_are_listed_with_states_and_figures(home: Path, run: Command) -> None:
    write_run(home / "runs/a")
    write_run(home / "runs/deep/b", replace(RECORD, ended="too many bad documents"))
    (home / "runs/b/checkpoints/step-2").mkdir(parents=True)
    with exclusive(home / "runs/a"):
        code, out, err = run("runs")
        assert (code, err) == (0, "")
        os.utime(home / "runs/a/log.jsonl", (0, 0))
        late = run("runs", "runs/a")[1]
    head, first, second, third, reason = out.splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    assert first.split()[:3] == ["runs/a", "running", "3/4"]
    assert first.split()[3:7] == ["0.3333", "0.3333", "-", "0.75"] and first.endswith(" s ago")
    assert "ended early, resumable from step 2  2/?" in second
    assert "failed, no resume point" in third and "3/4" in third
    assert reason == "runs/deep/b: too many bad documents"
    assert "running, no line for 2" in late and "damaged" not in late


def test_a_json_line_has_a_run(home: Path, run: Command) -> None:
    write_run(home / "x/a")
    write_run(home / "x/b")
    code, out, _ = run("runs", "list", "x", "--json")
    first, second = map(json.loads, out.splitlines())
    assert code == 0 and (first["run"], second["run"]) == ("x/a", "x/b")
    assert (first["state"], first["step"], first["steps"], first["figures"]["lm"]) == ("failed", 3, 4, 1 / 3)
    assert first["held_out"] == {"lm": 0.75, "loss": 0.75} and first["last_line"].endswith("+00:00")


def test_damaged_runs_are_listed_and_named(home: Path, run: Command) -> None:
    write_run(home / "runs/a\x1b[2J")
    (home / "runs/a\x1b[2J/run.json").write_text("{")
    code, out, err = run("runs")
    assert code == 0 and "damaged" in out and "\x1b" not in out + err
    assert err.startswith("damaged: runs/a\\x1b[2J/run.json: JSONDecodeError")


def test_a_folder_without_runs_is_a_sentence(home: Path, run: Command) -> None:
    code, out, err = run("runs")
    assert (code, out) == (2, "") and "expected a folder with runs, got runs, which does not exist" in err
    (home / "runs").mkdir()
    code, out, _ = run("runs")
    assert code == 0 and out == "no run in runs; `dreamkit train RECIPE --out runs/NAME` writes one\n"


def test_the_help_of_the_group_lists_its_commands(run: Command) -> None:
    code, out, _ = run("runs", "--help")
    assert code == 0 and "Without COMMAND, runs `list`." in out and "  diff " in out


def test_a_comparison_has_what_differs_as_it_is_written(
    home: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", "/secret")
    write_run(home / "runs/a")
    changed: dict[str, Any] = {
        "data": [{"name": "pairs", "path": "/b.jsonl"}],
        "train": {"steps": 4, "warmup": 2},
    }
    other = replace(RECORD, recipe=changed, global_batch=8, versions={"python": "3.11", "torch": "2.7"})
    write_run(home / "runs/b", other, rate=3.0)
    code, out, err = run("runs", "diff", "runs/a", "runs/b")
    assert (code, err) == (0, "wrote runs-diff.html\n")
    lines = [line.split() for line in out.splitlines()]
    assert ["data[0].path", "'${oc.env:DATA}/a.jsonl'", "'/b.jsonl'"] in lines
    assert ["train.learning_rate", "0.1", "-"] in lines and ["train.warmup", "-", "2"] in lines
    assert ["torch", "2.6", "2.7"] in lines and ["lm", "0.3333", "1"] in lines
    assert "train.steps" not in out and "python" not in out and "/secret" not in out
    page = (home / "runs-diff.html").read_text()
    assert "Losses over documents" in page and 'aria-label="Text loss over documents' in page
    assert "a from 1 to 0.3333; b from 3 to 1; a, held-out" in page
    assert 'src="runs/a/drawings/step-3/0.png"' in page and 'src="runs/b/drawings/step-1/0.png"' in page
    assert "<script" not in page and "/secret" not in page
    assert run("runs", "diff", "runs/a", "runs/b")[0] == 2
    assert run("runs", "diff", "runs/a", "runs/b", "--overwrite")[0] == 0


def test_equal_runs_are_called_the_same(home: Path, run: Command) -> None:
    shutil.copytree(write_run(home / "a/x"), home / "b/x")
    code, out, _ = run("runs", "diff", "a/x", "b/x", "--out", "page.html")
    assert code == 0 and out.startswith("the recipes are the same\n")
    assert (
        re.search("last figure +a/x +b/x", out)
        and "Losses over documents" not in (home / "page.html").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("runs/a",), "expected at least two runs, got runs/a alone"),
        (
            ("runs/a", "gone"),
            "expected the folder of a run, got gone, which has neither run.json nor a resume point",
        ),
        (("runs/a", "runs/a", "--out", "runs"), "runs exists; name another file with --out"),
        (("runs/a", "runs/a", "--out", "runs/a/log.jsonl"), "replace it with --overwrite"),
    ],
)
def test_a_wrong_argument_is_a_sentence(
    home: Path, run: Command, arguments: tuple[str, ...], expected: str
) -> None:
    write_run(home / "runs/a")
    code, out, err = run("runs", "diff", *arguments)
    assert (code, out) == (2, "") and expected in err


def test_the_commands_load_no_torch(home: Path) -> None:
    write_run(home / "runs/a")
    script = (
        "import sys; from dreamkit.cli import main\n"
        "try: main()\n"
        "finally: print(*{'torch', 'transformers', 'accelerate', 'diffusers'} & set(sys.modules), file=sys.stderr)\n"
    )
    for arguments in (["runs"], ["runs", "diff", "runs/a", "runs/a"]):
        process = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=True,
        )
        assert process.stderr.splitlines()[-1] == "", process.stderr
