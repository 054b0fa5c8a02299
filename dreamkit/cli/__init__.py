"""The `dreamkit` command: parses, calls, prints. Each command imports heavy modules itself."""

from __future__ import annotations

import os
import sys

import typer

from dreamkit.cli import streams
from dreamkit.cli.app import app as app
from dreamkit.errors import DreamkitError, printable_lines, with_notes
from dreamkit.peers import error_prefix, is_consequence, wait_for_error


def main() -> None:
    """Run the command line. Print errors that the user can fix on stderr, and exit with code 2.

    A standard output that cannot be written is such an error. If it is a pipe that nobody reads any more, exit with
    code 1, without a message.
    """
    streams.prepare()
    code: str | int | None = 0
    unnamed: OSError | None = None  # not about a path: perhaps of standard output
    try:
        _require_working_folder()
        streams.show_logs()
        app()
    except SystemExit as end:
        code = end.code
    except DreamkitError as error:
        code = _print_error(with_notes(error))
    except OSError as error:
        if error.errno is None:  # not of the operating system
            raise
        if error.filename is None:
            unnamed = error
        else:
            code = _print_error(f"{error.filename}: {error.strerror}")
    except Exception:
        if not is_consequence():
            raise
        wait_for_error()
        code = 1
    failure = streams.output_error()
    if isinstance(failure, BrokenPipeError):
        code = 1
    elif failure is not None:
        code = _print_error(str(failure))
    elif unnamed is not None:
        code = _print_error(str(unnamed.strerror))
    sys.exit(code)


def _require_working_folder() -> None:
    """Raise if the working folder has been removed: torch and many libraries cannot even be imported then.

    Raises:
        DreamkitError: it has been removed.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise DreamkitError(
            f"the working folder cannot be used ({error.strerror}); change to a folder that exists, such as `cd ~`"
        ) from error


def _print_error(message: str) -> int:
    """Print an error on stderr, unless another process of the run does; return the exit code."""
    if (prefix := error_prefix()) is not None:
        typer.echo(printable_lines(f"dreamkit: {prefix}{message}"), err=True)
    else:
        wait_for_error()
    return 2
