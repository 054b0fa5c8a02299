"""Files that must not change while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dreamkit.errors import StorageError, printable
from dreamkit.storage.urls import Location, Url


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
def unchanged(
    path: Location, before: FileStatus | None = None, status: Callable[[Any], FileStatus] = file_status
) -> Iterator[None]:
    """Raise a StorageError if a file changes while the block reads it, or changed since its status was `before`.

    An error of the block is then that of a file that was written halfway. `status` returns the present status.

    Raises:
        OSError: the file is missing or cannot be reached, and `before` is None.
    """
    if before is None:
        before = status(path)
    else:
        _compare(path, before, status)
    try:
        yield
    except Exception as error:
        _compare(path, before, status, error)
        raise
    _compare(path, before, status)


def _compare(
    path: Location, before: FileStatus, status: Callable[[Any], FileStatus], cause: Exception | None = None
) -> None:
    reason = None
    try:
        if status(path) == before:
            return
    except OSError as error:
        reason, cause = error.strerror or str(error), cause or error
    raise changed_error(path, reason) from cause


def changed_error(path: Location, reason: str | None = None) -> StorageError:
    """Return the error about a file that changed while it was read; the default `reason` is its other status."""
    if reason is None:
        reason = f"its size or {'ETag' if isinstance(path, Url) else 'time of change'} is another one now"
    return StorageError(f"{printable(path)} changed while being read: {reason}; restore it or start anew")
