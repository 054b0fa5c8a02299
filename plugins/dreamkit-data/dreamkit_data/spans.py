"""Places of samples in the files of a data set, and their bytes: one read each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from dreamkit import DocumentError, Location, StorageError, indexed, printable
from dreamkit_data.bucket_reads import Reads, reads_of
from dreamkit_data.buckets import statuses

SPAN: Final = np.dtype([("start", "<u8"), ("size", "<u4")])  # of the rows of an index
MOST_OPEN: Final = 32  # files that a process holds open for a data set


class Span(NamedTuple):
    """A sample's place: offset and size in a file, in bytes, and the file's status in `Indexes.statuses`, or None."""

    path: Location
    start: int
    size: int
    status: tuple[int, int] | None


class Spans:
    """The samples of a data set's files in order. Their places are indexed, and mapped into memory.

    Args:
        files: files of the data set.
        build, kind, version, settings, folder: arguments of `dreamkit.indexed`; the rows are of `SPAN`.

    Attributes:
        facts: those of `build`, of each file.
    """

    def __init__(
        self,
        files: Sequence[Location],
        build: Callable[[Any], tuple[np.ndarray, Mapping[str, Any]]],
        *,
        kind: str,
        version: int,
        settings: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        self.files = files
        self._indexes = indexed(
            files,
            build,
            kind=kind,
            version=version,
            settings=settings,
            folder=folder,
            statuses=statuses,
        )
        self._ends = np.cumsum(self._indexes.rows)
        self.facts = self._indexes.facts
        self._open = OpenFiles()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Span:
        """Return the place of sample `index`.

        Raises:
            IndexError: there is no such sample.
            StorageError: the index is missing or damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected a sample from 0 to {len(self) - 1}, got {index}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        rows = self._indexes[number]
        if rows.dtype != SPAN:
            raise changed_error(self.files[number])
        row = rows[index - int(self._ends[number]) + len(rows)]
        return Span(self.files[number], int(row["start"]), int(row["size"]), self._indexes.statuses[number])

    def read(self, span: Span) -> bytes:
        """Return the bytes at a place.

        Raises:
            StorageError: the file is gone, cannot be read, or changed since it was indexed.
        """
        return self._open.read(span)

    def names_hash(self) -> str:
        """Return a hash of the name and the number of samples of each file, in order."""
        return hash_names(self.files, self._indexes.rows)


def hash_names(files: Sequence[Location], numbers: Iterable[int]) -> str:
    """Return a hash of the name of each file and its number of samples, in order."""
    digest = hashlib.sha256()
    for file, number in zip(files, numbers, strict=True):
        digest.update(f"{number} {file.name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def changed_error(path: Location) -> StorageError:
    """Return the error about a file that is another one than was indexed."""
    return StorageError(f"{printable(path)} changed since it was indexed; restore it or start anew")


class OpenFiles:
    """The files that were read last. Copies in other processes open their own."""

    def __init__(self) -> None:
        self._file: Callable[[Location], Reads] = lru_cache(MOST_OPEN)(reads_of)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()

    def read(self, span: Span) -> bytes:
        """Return the bytes at a place.

        Raises:
            StorageError: the file is gone, cannot be read, or changed since it was indexed.
        """
        try:
            data = self._file(span.path).read(span.start, span.size, span.status)
        except StorageError:
            raise
        except DocumentError as error:  # it is not a regular file now
            raise changed_error(span.path) from error
        except OSError as error:
            raise StorageError(f"{printable(span.path)}: cannot read the file: {error.strerror}") from error
        if len(data) < span.size:
            raise changed_error(span.path)
        return data
