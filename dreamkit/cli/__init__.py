"""The `dreamkit` command: parses, calls, prints. What is heavy is imported inside the command that needs it."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from dreamkit.cli.app import app as app
from dreamkit.errors import DreamkitError


def main() -> None:
    """Runs the command line. What the user can mend is said in a sentence on stderr, with exit code 2."""
    try:
        app()
    except DreamkitError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:  # not about a path that the user gave
            raise
        _refuse(f"{error.filename}: {error.strerror}")


def _refuse(sentence: str) -> NoReturn:
    typer.echo(f"dreamkit: {sentence}", err=True)
    sys.exit(2)
