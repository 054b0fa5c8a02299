"""Another project's `dreamkit` beside this one: the command and the import warn."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from dreamkit.neighbour import MIXED
from meta.installing import write_wheel

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
SCRIPT = ROOT / "dreamkit" / "cli" / "script" / "dreamkit"
PLUGINS = "[dreamkit.plugins]\ncore = dreamkit.registry.core\n"
# a few files of the other project; the library that they import is not installed
THEIRS = {
    "dreamkit/__init__.py": "from .agent import Agent\n\n__all__ = ['Agent']\n",
    "dreamkit/agent.py": "import a_library_nobody_has\n\nclass Agent:\n    pass\n",
    "dreamkit/utils/__init__.py": "",
}
CHECKOUT = ("checkout",)

# Folders on the path, each with its distributions in the order of installation.
Layout = Sequence[Sequence[str]]
BESIDE: dict[str, Layout] = {
    "overwritten": [("theirs", "ours")],
    "hidden": [CHECKOUT, ("theirs",)],
    "beside the older": [("theirs", "ours"), ("older editable",)],
    "behind the older": [("older editable",), ("theirs", "ours")],
}
IN_PLACE: dict[str, Layout] = {
    "overwriting": [("ours", "theirs")],
    "hiding a checkout": [("theirs",), CHECKOUT],
    "uninstalled": [("ours", "theirs", "not theirs")],
}
# `older` is this project's distribution by its old name, `moved` another project's with a package of another name
ALONE: dict[str, Layout] = {
    "ours": [("ours",)],
    "checkout": [CHECKOUT],
    "older": [("older", "ours")],
    "older editable": [("older editable", "ours")],
    "moved": [("moved", "ours")],
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    package = [path for ending in ("py", "pyi") for path in ROOT.glob(f"dreamkit/**/*.{ending}")]
    ours = {str(path.relative_to(ROOT)): path.read_text() for path in package}
    distributions = {
        "ours": ("dreamkit-core", VERSION, ours, PLUGINS),
        "theirs": ("dreamkit", VERSION, THEIRS),
        "older": ("dreamkit", VERSION, ours, PLUGINS),
        "older editable": ("dreamkit", VERSION, {"__editable__.dreamkit.pth": f"{ROOT}\n"}, PLUGINS),
        "moved": ("dreamkit", "1.0", {"dreamer/__init__.py": ""}),
    }
    return {
        name: write_wheel(tmp_path_factory.mktemp("wheel"), *wheel) for name, wheel in distributions.items()
    }


def lay_out(layout: Layout, wheels: dict[str, Path], folder: Path) -> dict[str, str]:
    """Install and uninstall distributions in folders; return the environment of a process that imports from these."""
    path = []
    for number, names in enumerate(layout):
        site = ROOT if names == CHECKOUT else folder / f"site{number}"
        for name in names if site != ROOT else ():
            with zipfile.ZipFile(wheels[name.removeprefix("not ")]) as wheel:
                if name.startswith("not "):
                    for file in wheel.namelist():
                        (site / file).unlink()
                else:
                    wheel.extractall(site)
        path.append(str(site))
    # the environment may be inside the checkout, as in the README
    is_library = {entry: Path(entry).is_relative_to(sys.prefix) for entry in sys.path}
    libraries = [entry for entry in sys.path if is_library[entry] or not Path(entry).is_relative_to(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *libraries])}


def python(code: str, environment: dict[str, str], folder: Path) -> tuple[int, str, str]:
    """Run code without editable installs; return exit code, standard output and standard error."""
    process = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, process.stdout, process.stderr


def command(environment: dict[str, str], folder: Path) -> tuple[int, str, str]:
    """Run `dreamkit --version` with the script of the installed command."""
    code = f"import runpy, sys; sys.argv = ['dreamkit', '--version']; runpy.run_path({str(SCRIPT)!r})"
    return python(code, environment, folder)


@pytest.mark.parametrize("layout", BESIDE)
def test_another_project_s_package_causes_a_warning(
    layout: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = lay_out(BESIDE[layout], wheels, tmp_path)
    assert command(environment, tmp_path) == (0, f"dreamkit {VERSION}\n", f"dreamkit: {MIXED}\n")
    code, out, err = python("import dreamkit\nprint(dreamkit.Document.__name__)", environment, tmp_path)
    assert (code, out) == (0, "Document\n")
    assert err == f"<string>:1: UserWarning: {MIXED}\n"


@pytest.mark.parametrize("layout", IN_PLACE)
def test_the_command_does_not_run_another_project_s_package(
    layout: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = lay_out(IN_PLACE[layout], wheels, tmp_path)
    code, out, err = command(environment, tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(
        "dreamkit: the package 'dreamkit' that Python finds is another project's, or what that left of "
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("layout", ALONE)
def test_this_project_s_own_packages_cause_no_warning(
    layout: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = lay_out(ALONE[layout], wheels, tmp_path) | {"PYTHONWARNINGS": "error"}
    assert command(environment, tmp_path) == (0, f"dreamkit {VERSION}\n", "")
    assert python("import dreamkit", environment, tmp_path) == (0, "", "")


def test_import_does_not_load_importlib_metadata(tmp_path: Path) -> None:
    """The import takes a few milliseconds; importlib.metadata alone takes several times as long."""
    code = "import sys, dreamkit; print('importlib.metadata' in sys.modules)"
    assert python(code, lay_out([CHECKOUT], {}, tmp_path), tmp_path) == (0, "False\n", "")
