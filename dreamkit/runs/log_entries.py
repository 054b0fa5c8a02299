"""Entries of the files of lines in the folder of a run, such as its log. This module loads no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from dreamkit.errors import TrainingError, describe_error, excerpt
from dreamkit.storage.paths import irregular_kind, shown_path

LogEntry = Mapping[str, float | None]
MAX_VALUE: Final = 1e300
TAIL: Final = 2**16  # bytes at the end of a file that `last_lines` reads


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log, without a last line whose writing was interrupted.

    Raises:
        TrainingError: another line is not an entry.
    """
    return read_entries(path, log_entry)


def read_entries(path: Path, parse: Callable[[bytes], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of `parse` for each line of a file, without a last one whose writing was interrupted.

    Raises:
        TrainingError: `parse` raised a ValueError or RecursionError for another line.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(parse(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise _invalid(path, number, error) from error
    return entries


class NewEntries:
    """The entries that were appended to a file since the last call of `read`; the file may be missing.

    A last line whose writing has not ended is left to the next call.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], dict[str, Any]]) -> None:
        self.path, self.parse = path, parse
        self._bytes = self._lines = 0  # that were read

    def read(self) -> list[dict[str, Any]]:
        """Return the new entries.

        Raises:
            TrainingError: a line is not an entry, or the file cannot be read.
        """
        entries = []
        for line in self._appended():
            self._lines += 1
            try:
                entries.append(self.parse(line))
            except (ValueError, RecursionError) as error:
                raise _invalid(self.path, self._lines, error) from error
        return entries

    def _appended(self) -> list[bytes]:
        data = _read_from(self.path, self._bytes)
        whole = data[: data.rfind(b"\n") + 1]
        self._bytes += len(whole)
        return whole.splitlines()


def last_lines(path: Path) -> list[bytes]:
    """Return the whole lines in the last 64 KiB of a file, which may be missing.

    Raises:
        TrainingError: the file cannot be read.
    """
    data = _read_from(path, -TAIL)
    lines = data.split(b"\n")[:-1]
    return lines[1:] if len(data) == TAIL else lines  # the first one is cut


def _read_from(path: Path, start: int) -> bytes:
    """Return the bytes of a file from `start` on, if negative before its end; none of a missing file.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        if (kind := irregular_kind(path)) is not None:
            raise TrainingError(f"{shown_path(path)}: expected a file, got {kind}; remove it")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start if start >= 0 else max(0, size + start))
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise TrainingError(f"{shown_path(path)}: {describe_error(error)}") from error


def log_entry(line: bytes) -> dict[str, Any]:
    """Return the entry in a line: a section of numbers, with the step.

    Raises:
        ValueError, RecursionError: the line is not an entry.
    """
    entry = json.loads(line.decode())
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        raise ValueError(f"expected a section with the step, got {excerpt(line.decode())}")
    for name, value in entry.items():
        is_finite = isinstance(value, int | float) and abs(value) < MAX_VALUE  # which NaN is not
        if value is not None and not is_finite:
            raise ValueError(f"expected a finite number as {excerpt(name)}, got {excerpt(json.dumps(value))}")
    return entry


def _invalid(path: Path, number: int, error: Exception) -> TrainingError:
    return TrainingError(f"{path}:{number}: invalid JSON entry: {describe_error(error)}; remove this line")
