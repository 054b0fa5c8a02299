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
from dreamkit.testing import contracts
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

class Waiting(Linear):
    def forward(self, tokens):
        print("in forward", flush=True)
        time.sleep(60)
"""
BARE = """
from dataclasses import make_dataclass
from dreamkit import Dataset

class Bare(Dataset):
    Config = make_dataclass("Config", [], frozen=True)
    def __init__(self, config): ...
    def __len__(self): ...
    def __getitem__(self, index): ...
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
    more = [f'Component("{name.lower()}", "mixed_bag.parts:{name}")' for name in ("Broken", "Waiting")]
    parts = hook("projector", "sound", "mixed_bag.parts:Sound").replace(")]", f"), {', '.join(more)}]")
    install(folder, "mixed_bag", parts, BROKEN)
    install(folder, "no_start", "import a_library_nobody_has\n")
    install(
        folder, "late", hook("projector", "late", "late.parts:Late"), "import a_library_nobody_has as Late\n"
    )
    install(folder, "sets", hook("dataset", "set", "dreamkit.data.pairs:Pairs"))
    install(folder, "bare", hook("dataset", "bare", "bare.parts:Bare"), BARE)
    install(folder, "idle", "@hookimpl\ndef dreamkit_recipes():\n    return 'idle:.'\n")
    return folder


def environment(site: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    before = sorted(site.rglob("*"))
    process = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(site),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert sorted(site.rglob("*")) == before  # it writes no file there
    return process


def test_all_registered_components_are_tested_and_counted(site: Path, tmp_path: Path) -> None:
    process = run(site, tmp_path, "dreamkit", "test-plugin", "dreamkit-core", "--quick")
    assert process.returncode == 0, process.stdout + process.stderr
    headers = re.findall(r"^(?!\d)\w.*", process.stdout, re.MULTILINE)
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
    data = 3 * len(contracts.checks("dataset"))
    ran = len(headers) + 87 + data  # `registered` of each, and the checks of projectors
    assert process.stdout.splitlines()[-1] == (
        f"{len(headers)} components of dreamkit-core; {ran} checks ran: {ran} passed, 0 failed; 3 skipped"
    )
    assert not list(tmp_path.iterdir())


def test_a_failure_prints_the_command_that_repeats_it(site: Path, tmp_path: Path) -> None:
    process = run(site, tmp_path, "dreamkit", "test-plugin", "Mixed.Bag", "--component", "broken", "--quick")
    assert process.returncode == 1
    assert "FAILED spec_agrees" in process.stdout
    assert "expected projected.shape (N, out_tokens, out_dim)=(2, 16, 32), got (2, 16, 4)" in process.stdout
    (command, *_) = re.findall(r"repeat it with: dreamkit (.*)", process.stdout)
    assert command == "test-plugin mixed_bag --component broken --check spec_agrees"
    again = run(site, tmp_path, "dreamkit", *command.split())
    assert again.returncode == 1 and "FAILED spec_agrees" in again.stdout
    assert "1 component of mixed_bag; 2 checks ran: 1 passed, 1 failed" in again.stdout
    sound = run(site, tmp_path, "dreamkit", "test-plugin", "mixed-bag", "--component", "sound", "--quick")
    assert sound.returncode == 0, sound.stdout
    assert not list(tmp_path.iterdir())


def test_an_interrupt_ends_the_command_without_a_traceback(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dreamkit", "test-plugin", "mixed-bag", "--component", "waiting"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(site),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it
    ) as process:
        assert process.stdout is not None
        while "in forward" not in (line := process.stdout.readline()):
            assert line, "it ended before the part was called"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "dreamkit: interrupted by SIGINT\n")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("no-start", "FAILED registered .*importing no_start failed: ModuleNotFoundError"),
        (
            "late",
            r"FAILED registered .*late/parts\.py:1: .*importing late.parts:Late failed: ModuleNotFoundError",
        ),
    ],
)
def test_a_plug_in_that_cannot_be_imported_fails(site: Path, tmp_path: Path, name: str, pattern: str) -> None:
    process = run(site, tmp_path, "dreamkit", "test-plugin", name)
    assert process.returncode == 1 and re.search(pattern, process.stdout), process.stdout
    assert "1 check ran: 0 passed, 1 failed" in process.stdout


def test_the_command_fails_if_its_check_is_skipped_everywhere(site: Path, tmp_path: Path) -> None:
    options = ["mixed-bag", "--component", "broken", "--check", "dense_layers_agree"]
    process = run(site, tmp_path, "dreamkit", "test-plugin", *options)
    assert process.returncode == 1 and "skip   dense_layers_agree" in process.stdout, process.stdout
    assert process.stdout.endswith("nothing tested: dense_layers_agree was skipped for every component\n")


def test_the_check_of_registration_can_run_alone(site: Path, tmp_path: Path) -> None:
    process = run(site, tmp_path, "dreamkit", "test-plugin", "mixed-bag", "--check", "registered")
    assert process.returncode == 0, process.stderr
    ends = "3 checks ran: 3 passed, 0 failed; 0 skipped"
    assert process.stdout.endswith(f"3 components of mixed_bag; {ends}\n")
    late = run(site, tmp_path, "dreamkit", "test-plugin", "late", "--check", "registered")
    assert late.returncode == 1 and "FAILED registered" in late.stdout


def test_a_data_set_is_tested_on_its_example(site: Path, tmp_path: Path) -> None:
    process = run(site, tmp_path, "dreamkit", "test-plugin", "sets", "--quick")
    assert process.returncode == 0 and "dataset set" in process.stdout, process.stdout
    for check in contracts.checks("dataset"):
        assert re.search(rf"^  ok +{check.name} ", process.stdout, re.MULTILINE), check.name


def test_a_data_set_without_an_example_is_imported(site: Path, tmp_path: Path) -> None:
    process = run(site, tmp_path, "dreamkit", "test-plugin", "bare")
    assert process.returncode == 0, process.stdout
    reason = "Bare has no example; write one in its class method `tiny_config(folder)`"
    assert re.search(rf"^  skip   contract .*{re.escape(reason)}$", process.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mixed-bga"], "unknown plug-in 'mixed-bga'; did you mean 'mixed_bag'?"),
        (
            ["sound"],
            "'sound' is a projector of mixed_bag; test it with: dreamkit test-plugin mixed_bag --component sound\n",
        ),
        (["torch"], f"'torch' {version('torch')} is installed, but registers no dreamkit plug-in; see"),
        (["idle"], "'idle' registers nothing, so there is nothing to test"),
        (
            ["mixed-bag", "--component", "brokn"],
            "unknown component 'brokn' of 'mixed_bag'; did you mean 'broken'?",
        ),
        (
            ["mixed-bag", "--check", "dtype_kpt"],
            "unknown check 'dtype_kpt'; did you mean",
        ),
        (["mixed-bag", "--check", "registred"], "did you mean 'registered'?"),
    ],
)
def test_a_wrong_argument_is_an_error(site: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    process = run(site, tmp_path, "dreamkit", "test-plugin", *arguments)
    assert process.returncode == 2 and message in process.stderr, process.stderr
    assert "Traceback" not in process.stderr


def test_pytest_runs_the_same_checks(site: Path, tmp_path: Path) -> None:
    options = ["--dreamkit-plugin", "mixed-bag", "--dreamkit-quick", "-rf"]
    process = run(site, tmp_path, "pytest", *SUITE, *options, "-k", "broken or sound")
    assert process.returncode == 1
    assert "FAILED" in process.stdout and "test_contract[projector-broken-spec_agrees]" in process.stdout
    assert (
        "repeat it with: dreamkit test-plugin mixed_bag --component broken --check spec_agrees"
        in process.stdout
    )
    late = run(site, tmp_path, "pytest", *SUITE, "--dreamkit-plugin", "late")
    assert re.search(r"^\S*late/parts\.py:1: .*importing late\.parts:Late failed", late.stdout, re.MULTILINE)
    assert "distribution.py" not in late.stdout
    sound = run(site, tmp_path, "pytest", *SUITE, *options, "-k", "sound")
    assert sound.returncode == 0 and re.search(r"\d+ passed, \d+ deselected", sound.stdout), sound.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "missing --dreamkit-plugin NAME"),
        (["--dreamkit-plugin", "mixed-bga"], "unknown plug-in 'mixed-bga'"),
    ],
)
def test_pytest_needs_an_installed_plug_in(
    site: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    process = run(site, tmp_path, "pytest", *SUITE, *options)
    assert process.returncode == pytest.ExitCode.USAGE_ERROR, process.stdout + process.stderr
    assert message in process.stdout + process.stderr


def test_without_hypothesis_the_error_names_the_extra(site: Path, tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['hypothesis'] = None; sys.argv = ['dreamkit', 'test-plugin', 'mixed-bag']\n"
        "from dreamkit.cli import main; main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", hidden], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert process.returncode == 2 and "pip install 'dreamkit-core[testing]'" in process.stderr, (
        process.stderr
    )
