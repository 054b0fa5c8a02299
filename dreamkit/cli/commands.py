"""The commands of plug-ins as a typer group. Listing a command does not import it; running it does."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

from dreamkit.errors import PluginError, describe_error, printable, printable_lines, with_notes
from dreamkit.interrupts import Interrupted, watch
from dreamkit.peers import error_prefix, is_consequence, wait_for_error
from dreamkit.registry.kinds import Registered
from dreamkit.registry.registry import Registry

LIST = "list"  # the command of a group that runs if none is named
COMPLETION = ("install_completion", "show_completion")  # typer adds these options to every app


class Commands(TyperGroup):
    """The commands whose names begin with `prefix`: all commands, or those of a first word such as `"data "`.

    Contexts and commands are `Any`, because some versions of typer hold a copy of click and others depend on click.
    """

    prefix = ""

    @cached_property
    def registry(self) -> Registry:
        return Registry.load()

    def invoke(self, ctx: Any) -> Any:
        """Run a command. A signal that ends it is one sentence and the exit code 128 + its number."""
        if self.prefix:
            return super().invoke(ctx)
        with watch(is_command=True):  # a second signal cannot cut the sentence
            try:
                with watch():
                    return super().invoke(ctx)
            except KeyboardInterrupt as error:
                interrupt = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
                if (prefix := error_prefix()) is not None:
                    sentence = with_notes(error) if str(error) else str(interrupt)
                    typer.echo(printable_lines(f"dreamkit: {prefix}{sentence}"), err=True)
                elif is_consequence():
                    wait_for_error()
                raise SystemExit(128 + interrupt.number) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add the word `list` if the group has that command, and the arguments begin with none of its commands."""
        names = self.list_commands(ctx)
        if self.prefix and LIST in names and args[:1] != ["--help"] and not {*args[:1]} & {*names}:
            args = [LIST, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys(name.partition(" ")[0] for name in self._inside()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command or group `cmd_name` of this group.

        Raises:
            PluginError: the command is unknown, in two plug-ins, or cannot be imported.
        """
        name = self.prefix + cmd_name
        if any(inside.startswith(f"{cmd_name} ") for inside in self._inside()):
            about = f"Without COMMAND, runs `{LIST}`." if f"{cmd_name} {LIST}" in self._inside() else None
            group = Commands(name=cmd_name, help=about, no_args_is_help=True, rich_markup_mode=None)
            group.prefix, group.registry = f"{name} ", self.registry
            return group
        target = self.registry.get("command", name)
        try:
            return _as_command(target, name)
        except Exception as error:
            registered = self.registry.components("command")[name]
            raise PluginError(
                f"command '{name}' of {registered.origin}: typer cannot make a command of "
                f"{registered.component.target}: {describe_error(error)}"
            ) from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each distribution, the core's first, and a sentence about broken plug-ins."""
        sections: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name, registered in self._inside().items():
            heading = "Commands" if registered.is_own_command else f"Commands of {registered.origin}"
            sections[heading].append((name, printable(registered.component.summary)))
        for heading in sorted(sections):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])
        if about := self.registry.about_problems():
            formatter.write(f"\nCommands may be missing:{about}\n")

    def _inside(self) -> Mapping[str, Registered]:
        """Return the usable commands of this group by their names without `prefix`."""
        return {
            name.removeprefix(self.prefix): registered
            for name, registered in self.registry.components("command").items()
            if name.startswith(self.prefix)
        }


def _as_command(target: Any, name: str) -> Any:
    """Convert a function or a typer app into a command without options for shell completion."""
    app = target
    if not isinstance(target, typer.Typer):
        app = typer.Typer(rich_markup_mode=None)
        app.command(name)(target)
    command = typer.main.get_command(app)
    command.params = [parameter for parameter in command.params if parameter.name not in COMPLETION]
    return command
