"""The kit on an installed distribution: `dreamkit test-plugin`, and the same through pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreamkit.registry import core
from meta.installing import hook, install

BROKEN = """
from dreamkit.parts.projectors import Linear

class Sound(Linear):
    pass

class Broken(Linear):
    def dense_layers(self):
        return None

    def forward(self, tokens):
        return super().forward(tokens)[..., :4]
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
    parts = hook("projector", "sound", "mixed_bag.parts:Sound").replace(
        '"mixed_bag.parts:Sound")]',
        '"mixed_bag.parts:Sound"), Component("broken", "mixed_bag.parts:Broken")]',
    )
    install(folder, "mixed_bag", parts, BROKEN)
    install(folder, "no_start", "import a_library_nobody_has\n")
    install(
        folder, "late", hook("projector", "late", "late.parts:Late"), "import a_library_nobody_has as Late\n"
    )
    install(folder, "sets", hook("dataset", "set", "dreamkit.data.pairs:Pairs"))
    install(folder, "idle", "@hookimpl\ndef dreamkit_recipes():\n    return 'idle:.'\n")
    return folder


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    before = sorted(site.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-start", "FAILED registered .*importing no_start failed: ModuleNotFoundError"),
        ("late", "FAILED registered .*importing late.parts:Late failed: ModuleNotFoundError"),
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
    assert done.stdout.endswith(
        "dense_layers_agree was asked for and tried on nothing, which is no success\n"
    )


def test_data_sets_are_imported(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", "sets")
    assert done.returncode == 0 and "dataset set" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mixed-bga"], "no installed plug-in is called 'mixed-bga'; did you mean 'mixed_bag'?"),
        (["idle"], "'idle' registers no part, data set or task, so there is nothing to test"),
        (["mixed-bag", "--component", "brokn"], "'mixed_bag' registers no 'brokn'; did you mean 'broken'?"),
        (
            ["mixed-bag", "--check", "dtype_kpt"],
            "there is no check 'dtype_kpt' of what is registered; did you mean",
        ),
    ],
)
def test_mistakes_are_said(site: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(site, tmp_path, "dreamkit", "test-plugin", *arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_pytest_runs_the_same(site: Path, tmp_path: Path) -> None:
    options = ["--dreamkit-plugin", "mixed-bag", "--dreamkit-quick", "-rf"]
    done = run(site, tmp_path, "pytest", *SUITE, *options)
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "test_contract[projector-broken-spec_agrees]" in done.stdout
    assert (
        "repeat it with: dreamkit test-plugin mixed_bag --component broken --check spec_agrees" in done.stdout
    )
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
