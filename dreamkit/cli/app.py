"""The command's application, and what its commands share."""

from __future__ import annotations

import math
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="dreamkit",
    help="DreamLLM as a modular toolkit: language models that read images and draw them in one document.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="settings to change, such as train.steps=100; or another recipe to lay over, such as dreamllm/with/sdxl",
    ),
]


def console() -> Console:
    """Standard output; wide enough that nothing is cut where it is not a terminal."""
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, width=200)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dreamkit {version('dreamkit-core')}")
        raise typer.Exit


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
