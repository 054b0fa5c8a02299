"""Arguments and output that commands share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table

from dreamkit.errors import printable_lines
from dreamkit.progress.consoles import SafeConsole

Setting = TypeVar("Setting")


def path_argument(text: str | Path) -> Path:
    """Return a path of the command line. Raise a usage error if it is empty: it would be the working folder."""
    if not str(text):
        raise typer.BadParameter("expected a path, got ''")
    return Path(text)


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="settings to change, such as train.steps=100; or a recipe to merge on top, such as dreamllm/with/sdxl",
    ),
]


def console() -> Console:
    """Return a console on standard output. It is wide if standard output is not a terminal, so that nothing is cut."""
    out = SafeConsole(highlight=False, markup=False)
    return out if out.is_terminal else SafeConsole(highlight=False, markup=False, width=200)


def print_pieces(pieces: Iterable[RenderableType]) -> None:
    """Print tables and texts on standard output; the terminal wraps texts."""
    out = console()
    for piece in pieces:
        out.print(piece, soft_wrap=isinstance(piece, str))


def echo(text: str, *, err: bool = False) -> None:
    """Print a line on standard output or error, with control characters as escapes."""
    typer.echo(printable_lines(text), err=err)


def print_by_origin(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows `(*names, origin, summary)`: under a heading for each origin on a terminal, else a line each.

    Only summaries wrap.
    """
    out = console()
    if not out.is_terminal:
        print_lines(headers, rows)
        return
    widths = _widths(row[:-2] for row in rows)
    for number, origin in enumerate(sorted({row[-2] for row in rows})):
        table = Table(box=None, show_header=False, pad_edge=False)
        for width in widths:
            table.add_column(no_wrap=True, min_width=width)
        for *names, _, summary in (row for row in rows if row[-2] == origin):
            table.add_row(*names, summary)
        out.print("\n" * (number > 0) + origin, style="bold")
        out.print(Padding(table, (0, 0, 0, 2)))


def print_lines(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, one line each."""
    lines = [[" ".join(cell.split()) for cell in row] for row in (headers, *rows)]
    widths = _widths(lines)
    for line in lines:
        echo("  ".join(map(str.ljust, line, widths)).rstrip())


def _widths(rows: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def check_setting(parameter: typer.CallbackParam, value: Setting | None) -> Setting | None:
    """Return the value of an option for a generation setting. Raise a usage error if a recipe could not have it."""
    from dreamkit.errors import ConfigError
    from dreamkit.recipe.settings import generation_section

    if value is not None:
        assert parameter.name is not None
        try:
            generation_section({parameter.name: value})
        except ConfigError as error:
            # of the setting, or of items of its list
            raise typer.BadParameter("; ".join(error.problems.values())) from error
    return value
