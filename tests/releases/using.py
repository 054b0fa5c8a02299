"""Copies of a release's files for tests, and a function that runs `dreamkit` as users run it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

RELEASES = sorted(Path(__file__).parent.glob("v*"))
HERE = "@here"  # replaces the absolute path of the release's folder in its manifests
RUNS = Path(__file__).parent / "runs.json"  # of `write_runs.py`
MANIFESTS = ("dreamkit.json", "cache.json")


class Result(NamedTuple):
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


def dreamkit(*arguments: object, code: int = 0) -> Result:
    """Run `dreamkit ARGUMENTS` in this process on the CPU, and assert that its exit code is `code`."""
    argv = ["dreamkit", *map(str, arguments)]
    actual = 0
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ),  # a command may change it
        mock.patch("torch.cuda.is_available", return_value=False),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            runpy.run_module("dreamkit", run_name="__main__")
        except SystemExit as error:
            actual = error.code if isinstance(error.code, int) else int(error.code is not None)
    result = Result(actual, out.getvalue(), err.getvalue())
    assert actual == code, f"{argv}: {result}"
    return result


def replace_in_manifests(folder: Path, old: str, new: str) -> None:
    """Replace the path `old` by `new` in all manifests in `folder`."""
    for file in (file for name in MANIFESTS for file in folder.rglob(name)):
        file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")


def read_expected(release: Path) -> Any:
    """Return the numbers that a release recorded, and today's for its seeded runs."""
    recorded = json.loads((release / "expected.json").read_text())
    return recorded | json.loads(RUNS.read_text())[release.name]


def copy_release(release: Path, folder: Path) -> Path:
    """Copy a release without its packages to the new folder `folder`, as if it had been written there."""
    shutil.copytree(release, folder, ignore=shutil.ignore_patterns("packages"))
    replace_in_manifests(folder, HERE, str(folder.resolve()))
    return folder


def install_packages(release: Path, folder: Path) -> Path:
    """Install the packages of a release with pip; return the new site folder."""
    sources = shutil.copytree(
        release / "packages", folder / "sources"
    )  # pip leaves build files in the sources
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    packages = sorted(str(path.parent) for path in sources.glob("*/pyproject.toml"))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *packages], check=True)
    return folder / "site"


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the log of a run without speeds and memory, which differ in every run."""
    lines = map(json.loads, (run / "log.jsonl").read_text("utf-8").splitlines())
    return [
        {
            name: line[name]
            for name in line
            if name not in ("data_wait", "memory") and "per_second" not in name
        }
        for line in lines
    ]
