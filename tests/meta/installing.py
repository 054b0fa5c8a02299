"""Distributions with plug-ins in a folder, as pip would leave them there."""

from __future__ import annotations

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


def hook(kind: str, name: str, target: str) -> str:
    return HOOK.format(hook=KINDS[kind].hook, name=name, target=target)
