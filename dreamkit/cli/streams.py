"""The standard streams and the lines of libraries on them. A standard output that fails is an error."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import warnings
from contextlib import suppress
from typing import Final, TextIO

from dreamkit.errors import DreamkitError, OutputError, excerpt, library_text
from dreamkit.storage.writing import failed_write

STDIN, STDOUT, STDERR = 0, 1, 2
LOG_LEVEL: Final = "DREAMKIT_LOG"  # the environment variable
LEVELS: Final = ("debug", "info", "warning", "error")  # its values
# the environment variables of libraries that print their logs themselves, from a level of their own on
_LIBRARY_LEVELS: Final = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY")
# Standard output is opened for reading, so that printing stays an error.
_MODES: Final = {STDIN: os.O_RDONLY, STDOUT: os.O_RDONLY, STDERR: os.O_WRONLY}


def prepare() -> None:
    """Open closed standard streams, and prepare the others for errors.

    The next opened file would take the number of a closed stream, and receive what is printed. The first error of
    standard output is raised and kept for `output_error`; Python would print it again at its end. Errors of standard
    error are ignored: progress is no reason to stop, and a message about it would not arrive either. Characters that
    the encoding of a stream lacks are printed as escapes such as `\\u732b`, and so are control characters in the logs
    and warnings of libraries.
    """
    for number, mode in _MODES.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Output(STDOUT, "w", closefd=False), sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Messages(STDERR, "w", closefd=False), sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_SafeRecord)
    warnings.formatwarning = _format_warning


def show_logs() -> None:
    """Print the log of parts and libraries from the level in the environment variable `DREAMKIT_LOG` on.

    Python itself prints warnings and errors. An empty variable is as good as none. A library's own variable stays as it
    is. Call this before the libraries are imported.

    Raises:
        DreamkitError: there is no such level.
    """
    level = os.environ.get(LOG_LEVEL)
    if not level:
        return
    if level.lower() not in LEVELS:
        raise DreamkitError(f"{LOG_LEVEL}: expected one of {', '.join(LEVELS)}, got '{excerpt(level)}'")
    for variable in _LIBRARY_LEVELS:
        os.environ[variable] = os.environ.get(variable) or level.lower()
    if level.lower() != "warning":
        logging.basicConfig(level=level.upper(), format="%(name)s: %(message)s")


class _SafeRecord(logging.LogRecord):
    """A line of any logger. Libraries log values of files whole and with their control characters."""

    def getMessage(self) -> str:
        return library_text(super().getMessage())


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning of any library as one line, without the line of its code."""
    return f"{filename}:{lineno}: {category.__name__}: {library_text(str(message))}\n"


class _Output(io.FileIO):
    """A file that raises and keeps the first error of writing, and drops everything after it."""

    error: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        if self.error is not None:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


class _Messages(io.FileIO):
    """A file that drops what cannot be written."""

    def write(self, data: bytes) -> int:  # type: ignore[override]  # any buffer
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _text(raw: io.FileIO, before: TextIO | None) -> io.TextIOWrapper:
    """Return a text stream on `raw`, otherwise like the one before, which is None if it was closed."""
    if not isinstance(before, io.TextIOWrapper):
        return io.TextIOWrapper(io.BufferedWriter(raw))
    before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        before.encoding,
        before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )


def output_error() -> OSError | OutputError | None:
    """Write what waits for standard output; return the error of it if there was one.

    A `BrokenPipeError` is returned as it is.
    """
    with suppress(OSError):  # it is kept
        sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Output) else None
    if error is None or isinstance(error, BrokenPipeError):
        return error
    place = f"/dev/fd/{STDOUT}" if stat.S_ISREG(os.fstat(STDOUT).st_mode) else None
    return OutputError(failed_write("to standard output", error, place, remedy="redirect it to another file"))
