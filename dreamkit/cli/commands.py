"""The commands that plug-ins give, as a group of typer: listed without importing them, imported when used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

from dreamkit.errors import PluginError
from dreamkit.registry.kinds import Registered
from dreamkit.registry.registry import Registry
from dreamkit.registry.targets import describe_error

COMPLETION = ("install_completion", "show_completion")  # the options of an app that is run by itself


class Commands(TyperGroup):
    """The commands whose names begin with `prefix`: all of them, or those of one first word, such as `"data "`.

    Typer brings click along, or depends on it, as its version has it; hence contexts and commands are `Any`.
    """

    prefix = ""

    @cached_property
    def registry(self) -> Registry:
        return Registry.load()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys(name.partition(" ")[0] for name in self._inside()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, or the group, called `cmd_name` in this group.

        Raises:
            PluginError: there is none, two plug-ins give it, or it cannot be imported.
        """
        name = self.prefix + cmd_name
        if any(inside.startswith(f"{cmd_name} ") for inside in self._inside()):
            group = Commands(name=cmd_name, no_args_is_help=True, rich_markup_mode=None)
            group.prefix, group.registry = f"{name} ", self.registry
            return group
        target = self.registry.get("command", name)
        try:
            return _as_command(target, name)
        except Exception as error:
            registered = self.registry.components("command")[name]
            raise PluginError(
                f"command '{name}' of {registered.origin}: typer makes no command of {registered.component.target}: "
                f"{describe_error(error)}"
            ) from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each distribution, the core's first, and which plug-ins are broken."""
        sections: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name, registered in self._inside().items():
            heading = "Commands" if registered.is_own_command else f"Commands of {registered.origin}"
            sections[heading].append((name, registered.component.summary))
        for heading in sorted(sections):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])
        if about := self.registry.about_problems():
            formatter.write(f"\nCommands may be missing:{about}\n")

    def _inside(self) -> Mapping[str, Registered]:
        """The usable commands of this group, by the rest of their names."""
        return {
            name.removeprefix(self.prefix): registered
            for name, registered in self.registry.components("command").items()
            if name.startswith(self.prefix)
        }


def _as_command(target: Any, name: str) -> Any:
    """Make the command that a function or a typer app is, without an option to install completion."""
    app = target
    if not isinstance(target, typer.Typer):
        app = typer.Typer(rich_markup_mode=None)
        app.command(name)(target)
    command = typer.main.get_command(app)
    command.params = [parameter for parameter in command.params if parameter.name not in COMPLETION]
    return command
