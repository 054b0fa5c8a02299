"""Files that must not change while they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dreamkit.errors import StorageError, printable


class FileStatus(NamedTuple):
    """Size of a file in bytes, and time of its last change in nanoseconds."""

    size: int
    time: int


def file_status(path: Path) -> FileStatus:
    """Return the present status of a file. Links are followed.

    Raises:
        OSError: the file is missing or cannot be reached.
    """
    status = os.stat(path)
    return FileStatus(status.st_size, status.st_mtime_ns)


@contextmanager
def unchanged(path: Path, before: FileStatus | None = None) -> Iterator[None]:
    """Raise a StorageError if a file changes while the block reads it, or changed since its status was `before`.

    An error of the block is then that of a file that was written halfway.

    Raises:
        OSError: the file is missing or cannot be reached, and `before` is None.
    """
    if before is None:
        before = file_status(path)
    else:
        _compare(path, before)
    try:
        yield
    except Exception as error:
        _compare(path, before, error)
        raise
    _compare(path, before)


def _compare(path: Path, before: FileStatus, cause: Exception | None = None) -> None:
    reason = "its size or time of change is another one now"
    try:
        if file_status(path) == before:
            return
    except OSError as error:
        reason, cause = error.strerror or str(error), cause or error
    raise changed_error(path, reason) from cause


def changed_error(path: Path, reason: str) -> StorageError:
    """Return the error about a file that changed while it was read."""
    return StorageError(f"{printable(path)} changed while being read: {reason}; restore it or start anew")
