"""Distributions in a folder, as pip would leave them there, and wheels of them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from dreamkit.registry.kinds import KINDS

HOOK = """
@hookimpl
def {hook}():
    return [Component("{name}", "{target}")]
"""


def install(site: Path, package: str, hooks: str, parts: str = "") -> None:
    """A distribution in a folder, as pip leaves it: a package, and what says of its entry point."""
    (site / package).mkdir()
    imports = "from dreamkit import Component, hookimpl\n"
    (site / package / "__init__.py").write_text(imports + hooks)
    (site / package / "parts.py").write_text(parts)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dreamkit.plugins]\n{package} = {package}\n")


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str], entry_points: str = ""
) -> Path:
    """Write a wheel into `folder`; `files` maps the paths in it to their text."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    written = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points,
    }
    record = "".join(f"{file},,\n" for file in [*written, f"{info}/RECORD"])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in (written | {f"{info}/RECORD": record}).items():
            wheel.writestr(file, text)
    return path


def hook(kind: str, name: str, target: str) -> str:
    return HOOK.format(hook=KINDS[kind].hook, name=name, target=target)
