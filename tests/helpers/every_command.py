"""The commands of the installed plug-ins, by their full names."""

from __future__ import annotations

from typing import Any

import typer.main

from dreamkit.cli import app
from dreamkit.registry.registry import Registry


def command(name: str) -> Any:
    """Return the command of this name from the command line."""
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.get_command(None, word)
    return command


COMMANDS = {name: command(name) for name in Registry.load().components("command")}
