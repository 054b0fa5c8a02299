"""The kit on an installed distribution: `dreamkit test-plugin`, and the same through pytest."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dreamkit.registry import core
from meta.installing import hook, install

BROKEN = """
import time
from dreamkit.parts.projectors import Linear

class Sound(Linear):
    pass

class Broken(Linear):
    def dense_layers(self):
        return None

    def forward(self, tokens):
        return super().forward(tokens)[..., :4]

class Raising(Linear):
    def forward(self, tokens):
        return super().forward(tokens.reshape(-1, 7))

class Waiting(Linear):
    def forward(self, tokens):
        print("in forward", flush=True)
        time.sleep(60)
"""
SUITE = [
    "-p",
    "dreamkit.testing.pytest_plugin",
    "-p",
    "no:cacheprovider",
    "--pyargs",
    "dreamkit.testing.suite",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    more = [
        f'Component("{name.lower()}", "mixed_bag.parts:{name}")' for name in ("Broken", "Raising", "Waiting")
    ]
    parts = hook("projector", "sound", "mixed_bag.parts:Sound").replace(")]", f"), {', '.join(more)}]")
    install(folder, "mixed_bag", parts, BROKEN)
    install(folder, "no_start", "import a_library_nobody_has\n")
    install(
        folder, "late", hook("projector", "late", "late.parts:Late"), "import a_library_nobody_has as Late\n"
    )
    install(folder, "sets", hook("dataset", "set", "dreamkit.data.pairs:Pairs"))
    install(folder, "idle", "@hookimpl\ndef dreamkit_recipes():\n    return 'idle:.'\n")
    return folder


def environment(site: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    before = sorted(site.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(site),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert sorted(site.rglob("*")) == before
    return done


def test_everything_registered_is_tested_and_counted(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", "dreamkit-core", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    headers = re.findall(r"^(?!\d)\w.*", done.stdout, re.MULTILINE)
    assert headers == [
        "projector linear",
        "projector mlp",
        "projector resampler",
        "projector mapper",
        "projector encoder",
        "dataset pairs",
        "dataset interleaved",
        "dataset conversations",
        *(f"command {command.name}" for command in core.dreamkit_commands()),
    ]
    assert done.stdout.splitlines()[-1] == (
        "21 components of dreamkit-core; 108 checks ran: 108 passed, 0 failed, 0 failed as expected; 3 skipped"
    )
    assert not list(tmp_path.iterdir())


def test_a_broken_part_fails_with_the_command_that_repeats_it(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", "Mixed.Bag", "--component", "broken", "--quick")
    assert done.returncode == 1
    assert "FAILED spec_agrees" in done.stdout
    assert "projected.shape=(2, 16, 4), but should be (N, out_tokens, out_dim)=(2, 16, 32)" in done.stdout
    (command, *_) = re.findall(r"repeat it with: dreamkit (.*)", done.stdout)
    assert command == "test-plugin mixed_bag --component broken --check spec_agrees"
    again = run(site, tmp_path, "dreamkit", *command.split())
    assert again.returncode == 1 and "FAILED spec_agrees" in again.stdout
    assert "1 component of mixed_bag; 2 checks ran: 1 passed, 1 failed" in again.stdout
    sound = run(site, tmp_path, "dreamkit", "test-plugin", "mixed-bag", "--component", "sound", "--quick")
    assert sound.returncode == 0, sound.stdout
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_told_once_with_its_line(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", "mixed-bag", "--component", "raising", "--quick")
    line = BROKEN[: BROKEN.index("tokens.reshape")].count("\n") + 1
    place = f"{site}/mixed_bag/parts.py:{line}"
    lines = done.stdout.splitlines()
    first = next(number for number, text in enumerate(lines) if "FAILED spec_agrees" in text)
    assert lines[first + 1 : first + 6] == [
        f"    {place}: RuntimeError: shape '[-1, 7]' is invalid for input of size 768",
        "      spec_agrees: What a part gives has the shape that its spec says, and is finite.",
        "      during forward(tokens of shape (2, 16, 24))",
        "      smallest failing input: case=Case(rows=2, length=2, seed=0)",
        "      repeat it with: dreamkit test-plugin mixed_bag --component raising --check spec_agrees",
    ]
    told = [text for text in lines[first + 6 :] if "FAILED" in text]
    assert len(told) > 10 and all(
        text.endswith(f"the same error as in `spec_agrees`, at {place}") for text in told
    )
    assert len(lines) < 30 and not done.stderr


def test_an_interrupt_ends_it_with_a_word(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dreamkit", "test-plugin", "mixed-bag", "--component", "waiting"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(site),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "in forward" not in (line := process.stdout.readline()):
            assert line, "it ended before the part was called"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-start", "FAILED registered .*importing no_start failed: ModuleNotFoundError"),
        (
            "late",
            r"FAILED registered .*late/parts\.py:1: .*importing late.parts:Late failed: ModuleNotFoundError",
        ),
    ],
)
def test_what_cannot_be_imported_fails(site: Path, tmp_path: Path, name: str, said: str) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", name)
    assert done.returncode == 1 and re.search(said, done.stdout), done.stdout
    assert "1 check ran: 0 passed, 1 failed" in done.stdout


def test_a_check_that_is_skipped_is_no_success(site: Path, tmp_path: Path) -> None:
    options = ["mixed-bag", "--component", "broken", "--check", "dense_layers_agree"]
    done = run(site, tmp_path, "dreamkit", "test-plugin", *options)
    assert done.returncode == 1 and "skip   dense_layers_agree" in done.stdout, done.stdout
    assert done.stdout.endswith("nothing tested: dense_layers_agree was skipped for every component\n")


def test_registration_alone_can_be_checked(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", "mixed-bag", "--check", "registered")
    assert done.returncode == 0, done.stderr
    ends = "4 checks ran: 4 passed, 0 failed, 0 failed as expected; 0 skipped"
    assert done.stdout.endswith(f"4 components of mixed_bag; {ends}\n")
    late = run(site, tmp_path, "dreamkit", "test-plugin", "late", "--check", "registered")
    assert late.returncode == 1 and "FAILED registered" in late.stdout


def test_data_sets_are_imported(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", "sets")
    assert done.returncode == 0 and "dataset set" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mixed-bga"], "no installed plug-in is called 'mixed-bga'; did you mean 'mixed_bag'?"),
        (
            ["sound"],
            "'sound' is a projector of mixed_bag; test it with: dreamkit test-plugin mixed_bag --component sound\n",
        ),
        (["torch"], f"'torch' {version('torch')} is installed, but registers no dreamkit plug-in; see"),
        (["idle"], "'idle' registers nothing, so there is nothing to test"),
        (["mixed-bag", "--component", "brokn"], "'mixed_bag' registers no 'brokn'; did you mean 'broken'?"),
        (
            ["mixed-bag", "--check", "dtype_kpt"],
            "there is no check 'dtype_kpt' of what is registered; did you mean",
        ),
        (["mixed-bag", "--check", "registred"], "did you mean 'registered'?"),
    ],
)
def test_mistakes_are_said(site: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", *arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_pytest_runs_the_same(site: Path, tmp_path: Path) -> None:
    options = ["--dreamkit-plugin", "mixed-bag", "--dreamkit-quick", "-rf"]
    done = run(site, tmp_path, "pytest", *SUITE, *options, "-k", "broken or sound")
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "test_contract[projector-broken-spec_agrees]" in done.stdout
    assert (
        "repeat it with: dreamkit test-plugin mixed_bag --component broken --check spec_agrees" in done.stdout
    )
    late = run(site, tmp_path, "pytest", *SUITE, "--dreamkit-plugin", "late")
    assert re.search(r"^\S*late/parts\.py:1: .*importing late\.parts:Late failed", late.stdout, re.MULTILINE)
    assert "distribution.py" not in late.stdout
    sound = run(site, tmp_path, "pytest", *SUITE, *options, "-k", "sound")
    assert sound.returncode == 0 and re.search(r"\d+ passed, \d+ deselected", sound.stdout), sound.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--dreamkit-plugin NAME is missing"),
        (["--dreamkit-plugin", "mixed-bga"], "no installed plug-in is called 'mixed-bga'"),
    ],
)
def test_without_a_target_pytest_refuses(site: Path, tmp_path: Path, options: list[str], said: str) -> None:
    done = run(site, tmp_path, "pytest", *SUITE, *options)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert said in done.stdout + done.stderr


def test_without_hypothesis_the_extra_is_named(site: Path, tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['hypothesis'] = None; sys.argv = ['dreamkit', 'test-plugin', 'mixed-bag']\n"
        "from dreamkit.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2 and "pip install 'dreamkit-core[testing]'" in done.stderr, done.stderr
