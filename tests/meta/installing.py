"""Distributions: installed in a folder as pip does it, or as wheels."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreamkit.registry.kinds import KINDS

HOOK = """
@hookimpl
def {hook}():
    return [Component("{name}", "{target}")]
"""


def install(site: Path, package: str, hooks: str, parts: str = "") -> None:
    """Install a package and the metadata of its entry point into the folder `site`, as pip does it."""
    (site / package).mkdir()
    imports = "from dreamkit import Component, hookimpl\n"
    (site / package / "__init__.py").write_text(imports + hooks)
    (site / package / "parts.py").write_text(parts)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dreamkit.plugins]\n{package} = {package}\n")


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    entry_points: str = "",
    requires: Sequence[str] = (),
) -> Path:
    """Write a wheel into `folder` and return its path; `files` maps the paths in it to their text."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {requirement}\n" for requirement in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points,
    }
    record = "".join(f"{file},,\n" for file in [*contents, f"{info}/RECORD"])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in (contents | {f"{info}/RECORD": record}).items():
            wheel.writestr(file, text)
    return path


def hook(kind: str, name: str, target: str) -> str:
    """Return the source of a hook that returns one component."""
    return HOOK.format(hook=KINDS[kind].hook, name=name, target=target)
