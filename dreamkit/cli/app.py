"""The application: the commands of plug-ins, and the options before them."""

from __future__ import annotations

from typing import Annotated

import typer

from dreamkit.cli.commands import Commands

app = typer.Typer(
    name="dreamkit",
    cls=Commands,
    help="DreamLLM as a modular toolkit: language models that read and draw images in one document.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        typer.echo(f"dreamkit {version('dreamkit-core')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
