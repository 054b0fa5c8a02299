"""Reads of ranges of bytes from one file, by any number of processes and threads."""

from __future__ import annotations

import os
from pathlib import Path

from dreamkit.data.text_files import open_regular
from dreamkit.data.unchanged import changed_error
from dreamkit.errors import StorageError


class RangeReads:
    """A file that is opened at its first read in a process, and stays open.

    A run that reads millions of documents opens it once. There is no position or lock that processes or threads could
    share, so that a process can be forked at any time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: _Descriptor | None = None

    def __reduce__(self) -> tuple[type[RangeReads], tuple[Path]]:
        return RangeReads, (self.path,)

    def read(self, start: int, size: int, status: tuple[int, int] | None = None) -> bytes:
        """Return `size` bytes from offset `start` on, or fewer if the file ends before.

        Args:
            start: offset of the first byte.
            size: number of bytes.
            status: size in bytes and time of change in nanoseconds that the file must have.

        Raises:
            DocumentError: not a regular file.
            StorageError: the file has another status. The next call opens it anew.
            OSError: the file is missing or cannot be read. The next call opens it anew.
        """
        file = self._open or _Descriptor(self.path)
        self._open = file
        try:
            present = os.fstat(file.number)
            if status is not None and (present.st_size, present.st_mtime_ns) != status:
                raise changed_error(self.path)
            size = max(0, min(size, present.st_size - start))  # before memory is taken
            pieces = []
            while size and (piece := os.pread(file.number, size, start)):
                pieces.append(piece)
                start, size = start + len(piece), size - len(piece)
        except (OSError, StorageError):
            self._open = None
            raise
        return b"".join(pieces)


class _Descriptor:
    """The descriptor of a regular file, open while a thread uses it."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            self.number = os.dup(file.fileno())

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
