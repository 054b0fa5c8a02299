"""Commands that a signal ends, as processes: a sentence, the exit code 128 + signal, and whole files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import dreamkit.cli
import tiny
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.training.resume_state import read_state
from processes import MAIN, SECONDS, TORCHRUN, command, process_of_rank, wait_until
from recipe_files import write_pairs_recipe

WITH_AN_ENDLESS_STEP = """
import pathlib, time
from dreamkit.model.model import DreamModel

def forward(*_, **named):
    pathlib.Path("started").touch()
    time.sleep(600)

DreamModel.forward = forward
"""
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])

INTERRUPTED = """
import os, signal, typer
from dreamkit.cli import main

def invoke(*_):
    os.kill(os.getpid(), signal.SIGTERM)

def kill_and_print(message, echo=typer.echo, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    echo(message, **named)

typer.core.TyperGroup.invoke, typer.echo = invoke, kill_and_print
main()
"""
SCRIPT = Path(dreamkit.cli.__file__).with_name("script") / "dreamkit"
MODULES = {
    "typer": "while modules are imported",
    "sitecustomize": "after the command",
}


@BOTH
@pytest.mark.parametrize("module", MODULES, ids=MODULES.values())
@pytest.mark.parametrize("start", [[SCRIPT], ["-m", "dreamkit"]], ids=["dreamkit", "python -m dreamkit"])
def test_a_signal_outside_a_command_prints_nothing(
    tmp_path: Path, number: signal.Signals, module: str, start: list[object]
) -> None:
    kill = f"os.kill(os.getpid(), {number:d})"
    code = {
        "typer": f"import os; {kill}",
        "sitecustomize": f"import atexit, os; atexit.register(lambda: {kill})",
    }
    (tmp_path / f"{module}.py").write_text(code[module])
    process = subprocess.run(
        [sys.executable, *start, "--version"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (-number, "")  # which a shell shows as 128 + number


def test_a_second_signal_cannot_cut_the_sentence(tmp_path: Path) -> None:
    """Programs such as `timeout` send a signal to a process and again to its group."""
    with command("plugins", folder=tmp_path, code=INTERRUPTED) as process:
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert (tmp_path / "stderr").read_text() == "dreamkit: interrupted by SIGTERM\n"


IMPORTING = """
import contextlib, os, sys, typer
from dreamkit.cli import main

class Finder:
    @classmethod
    def find_spec(cls, name, *_):
        if name == "with_signal":
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Finder)

def invoke(*_):
    with contextlib.suppress(BaseException):  # as a library in C++, which may also abort
        import with_signal
    print("imported", flush=True)

typer.core.TyperGroup.invoke = invoke
main()
"""


@BOTH
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_while_a_command_imports_modules_ends_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, rank: int
) -> None:
    """An exception in the import of torch would abort the process."""
    monkeypatch.setenv("RANK", str(rank))
    code = IMPORTING.format(number=int(number))
    with command("plugins", folder=tmp_path, code=code) as process:
        assert process.wait(SECONDS) == 128 + number
    assert (tmp_path / "stdout").read_text() == ""
    sentence = f"dreamkit: interrupted by {number.name}\n" if rank == 0 else ""
    assert (tmp_path / "stderr").read_text() == sentence


@BOTH
@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_training_saves_its_last_step_and_continues(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], number: signal.Signals, workers: int
) -> None:
    recipe, out = write_pairs_recipe(tmp_path, workers=workers), tmp_path / "out"
    log = out / "log.jsonl"
    with command("train", recipe, "--out", out, folder=tmp_path) as process:
        wait_until(lambda: log.is_file() and log.read_text().count("\n") > 1, process)
        os.killpg(process.pid, number)  # as a terminal or a cluster does, also to the workers
        assert process.wait(SECONDS) == 128 + number
    (point,) = (out / "checkpoints").iterdir()
    step = int(point.name.removeprefix("step-"))
    *_, last = (tmp_path / "stderr").read_text().splitlines()
    assert last == (
        f"dreamkit: interrupted by {number.name}; step {step} is saved in {point}; continue with --resume"
    )
    assert (tmp_path / "stderr").read_text().count(
        "dreamkit: "
    ) == 2  # the other is the hint about a second one
    settings = json.loads((point / "dreamkit.json").read_text())["recipe"]["train"]
    assert settings["steps"] == 10**5 and step >= 4
    code, _, err = run("train", recipe, "train.steps=1", "--out", out, "--resume")
    assert (
        code == 2 and f"expected train.steps of at least {step}" in err
    )  # the point loads, and is of this run


@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGTERM, None), (signal.SIGUSR1, 1)],
    ids=["SIGTERM to all", "SIGUSR1 to one"],
)
def test_the_processes_of_torchrun_save_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, rank: int | None
) -> None:
    """`torchrun` sends its signal to all processes and their workers. Its own exit code is another."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    recipe, out = write_pairs_recipe(tmp_path, workers=1), tmp_path / "out"
    log = out / "log.jsonl"
    arguments = ("--standalone", "--nproc-per-node=2", "-m", "dreamkit", "train", recipe, "--out", out)
    with command(*arguments, folder=tmp_path, code=TORCHRUN) as process:
        wait_until(lambda: log.is_file() and bool(log.read_text()), process)
        os.kill(process.pid if rank is None else process_of_rank(rank, process), number)
        assert process.wait(SECONDS) != 0
    (point,) = (out / "checkpoints").iterdir()
    err = (tmp_path / "stderr").read_text()
    step = point.name.replace("-", " ")
    saved = f"dreamkit: interrupted by {number.name}; {step} is saved in {point}; continue with --resume\n"
    assert err.count("interrupted by") == err.count(saved) == 1
    if rank is not None:  # torchrun lists the processes that end by themselves
        assert f": {128 + number} (pid" in err
    assert read_state(point).preempted


def test_a_second_signal_ends_training_at_once(tmp_path: Path) -> None:
    recipe, out = write_pairs_recipe(tmp_path), tmp_path / "out"
    code = WITH_AN_ENDLESS_STEP + MAIN
    with command("train", recipe, "--out", out, folder=tmp_path, code=code) as process:
        wait_until((tmp_path / "started").is_file, process)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "a second signal ends at once" in (tmp_path / "stderr").read_text(), process)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert {path.name for path in out.iterdir()} == {"log.jsonl", "run.json", "index.html"}


@BOTH
def test_an_interrupted_document_is_a_whole_page(tmp_path: Path, number: signal.Signals) -> None:
    model = tiny.model()
    model.set_trainable([])
    save_checkpoint(model, tmp_path / "checkpoint")
    arguments = (
        "generate",
        "checkpoint",
        "say",
        "--max-tokens",
        10**6,
        "--max-images",
        10**6,
        "--temperature",
        1,
    )
    with command(*arguments, "--steps", 2, "--out", "page", folder=tmp_path) as process:
        wait_until(lambda: (tmp_path / "stdout").stat().st_size > 0, process)
        process.send_signal(number)
        assert process.wait(SECONDS) == 128 + number
    page = Path("page/index.html")
    *_, last = (tmp_path / "stderr").read_text().splitlines()
    assert last == f"dreamkit: interrupted by {number.name}; wrote what was made so far to {page}"
    text = (tmp_path / page).read_text()
    assert text.endswith("</html>\n") and f"interrupted by {number.name}" in text


@BOTH
def test_an_interrupted_load_writes_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """The signal comes while libraries are imported or the model is loaded."""
    save_checkpoint(tiny.model(), tmp_path / "checkpoint")
    with command("generate", "checkpoint", "say", "--out", "page", folder=tmp_path) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_until(lambda: "libtorch_cpu" in maps.read_text(), process)
        process.send_signal(number)
        assert process.wait(SECONDS) == 128 + number
    assert (tmp_path / "stderr").read_text().endswith(f"dreamkit: interrupted by {number.name}\n")
    assert not (tmp_path / "page").exists()
