"""The `dreamkit` command: parses, calls, prints. Each command imports heavy modules itself."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from dreamkit.cli.app import app as app
from dreamkit.errors import DreamkitError, printable, with_notes


def main() -> None:
    """Run the command line. Print errors that the user can fix on stderr, and exit with code 2."""
    try:
        app()
    except DreamkitError as error:
        _refuse(with_notes(error))
    except OSError as error:
        if error.filename is None:  # the error is not about a path of the user
            raise
        _refuse(f"{error.filename}: {error.strerror}")


def _refuse(message: str) -> NoReturn:
    typer.echo(printable(f"dreamkit: {message}"), err=True)
    sys.exit(2)
