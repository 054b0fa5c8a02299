"""The commands that the installed plug-ins give, by their full names."""

from __future__ import annotations

from typing import Any

import typer.main

from dreamkit.cli import app
from dreamkit.registry.registry import Registry


def command(name: str) -> Any:
    """Return the command of this name, as the command line finds it."""
    found: Any = typer.main.get_command(app)
    for word in name.split():
        found = found.get_command(None, word)
    return found


COMMANDS = {name: command(name) for name in Registry.load().components("command")}
