"""The commands of the installed plug-ins, by their full names."""

from __future__ import annotations

from typing import Any

import typer.main

from dreamkit.cli import app
from dreamkit.cli.commands import LIST
from dreamkit.registry.registry import Registry


def command(name: str) -> Any:
    """Return the command of this name from the command line."""
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.get_command(None, word)
    return command


COMMANDS = {name: command(name) for name in Registry.load().components("command")}
GROUPS = sorted({name.split()[0] for name in COMMANDS if " " in name})
NAME = rf"(?:(?:{'|'.join(GROUPS)}) )?[a-z][\w-]*"  # the name of a command in a text


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """Return the name of a command, which may be two words, and its arguments."""
    length = 2 if " ".join(words[:2]) in COMMANDS else 1
    return full_name(" ".join(words[:length])), words[length:]


def full_name(name: str) -> str:
    """Return the name of a command; that of a group alone is its command `list`."""
    return f"{name} {LIST}" if f"{name} {LIST}" in COMMANDS else name
