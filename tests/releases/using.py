"""What a release left behind, put where a later one can use it; `dreamkit` is run as its users run it."""

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
HERE = "@here"  # stands for the release's own folder, which manifests name by its absolute path
MANIFESTS = ("dreamkit.json", "cache.json")


class Done(NamedTuple):
    """How a command ended: its exit code, and what it said on standard output and on standard error."""

    code: int
    out: str
    err: str


def dreamkit(*arguments: object, code: int = 0) -> Done:
    """`dreamkit ARGUMENTS` in this process, on the CPU; it has to end with the exit code `code`."""
    argv = ["dreamkit", *map(str, arguments)]
    ended = 0
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ),  # which a command may change for itself
        mock.patch("torch.cuda.is_available", return_value=False),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            runpy.run_module("dreamkit", run_name="__main__")
        except SystemExit as error:
            ended = error.code if isinstance(error.code, int) else int(error.code is not None)
    done = Done(ended, out.getvalue(), err.getvalue())
    assert ended == code, f"{argv}: {done}"
    return done


def named(folder: Path, old: str, new: str) -> None:
    """Lets the manifests in a folder name the folder `new` where they name `old`."""
    for file in (file for name in MANIFESTS for file in folder.rglob(name)):
        file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")


def placed(release: Path, folder: Path) -> Path:
    """A copy of a release in `folder`, a new one, as if it had been written there."""
    shutil.copytree(release, folder, ignore=shutil.ignore_patterns("packages"))
    named(folder, HERE, str(folder.resolve()))
    return folder


def installed(release: Path, folder: Path) -> Path:
    """A site folder, new, in which pip has installed the packages of a release."""
    sources = shutil.copytree(release / "packages", folder / "sources")  # where pip leaves what it builds
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    packages = sorted(str(path.parent) for path in sources.glob("*/pyproject.toml"))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *packages], check=True)
    return folder / "site"


def logged(run: Path) -> list[dict[str, Any]]:
    """The log of a run, but for what the clock decides."""
    lines = map(json.loads, (run / "log.jsonl").read_text("utf-8").splitlines())
    return [{name: line[name] for name in line if name != "steps_per_second"} for line in lines]
