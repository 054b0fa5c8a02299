"""The `dreamkit` command: parses, calls, prints. Each command imports heavy modules itself."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import typer

from dreamkit.cli.app import app as app
from dreamkit.errors import DreamkitError, printable


def main() -> None:
    """Run the command line. Print errors that the user can fix on stderr, and exit with code 2."""
    _allow_all_characters()
    try:
        app()
    except DreamkitError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:  # the error is not about a path of the user
            raise
        _refuse(f"{error.filename}: {error.strerror}")


def _allow_all_characters() -> None:
    """Print characters that the encoding of the terminal lacks as escapes such as `\\u732b`, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse(message: str) -> NoReturn:
    typer.echo(printable(f"dreamkit: {message}"), err=True)
    sys.exit(2)
