"""Files of an index: an array for each shard of a data set, its manifest, and a table of all manifests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from dreamkit.data.document_reads import raise_own
from dreamkit.data.unchanged import FileStatus
from dreamkit.errors import DreamkitError, StorageError, count, describe_error, printable
from dreamkit.storage.json_files import json_object, size_problem
from dreamkit.storage.writing import writing

FORMAT: Final = 1
_DAY: Final = 86_400  # seconds
_MAGIC: Final = np.lib.format.magic(1, 0)
_SIZES: Final = len(_MAGIC) + 2  # bytes before the header: the last two have its size
_SHAPE: Final = re.compile(rb"'shape': \((\d{1,15}),\)")
_LONGEST_HEAD: Final = 4096  # bytes of an array's header, at most
MOST_OPEN: Final = 64  # arrays that a process has mapped; each has a descriptor


class ShardStatus(NamedTuple):
    """The state of what an index depends on.

    Attributes:
        size, time: those of the shard's `FileStatus`.
        beside: time of the last change of a file or folder beside the shard, in nanoseconds; 0: there is none.
    """

    size: int
    time: int
    beside: int = 0

    @property
    def file(self) -> FileStatus:
        """The status of the shard itself."""
        return FileStatus(self.size, self.time)


class IndexRecord(NamedTuple):
    """The facts about the index of one shard.

    Attributes:
        size, time, beside: status of the shard when it was read.
        rows: number of rows of the array.
        bytes: size of the array's file.
        facts: values that the index has beside its rows, which JSON can hold.
    """

    size: int
    time: int
    beside: int
    rows: int
    bytes: int
    facts: dict[str, Any]

    @property
    def status(self) -> ShardStatus:
        """The status of the shard when it was read."""
        return ShardStatus(self.size, self.time, self.beside)


@dataclass(frozen=True)
class IndexFolder:
    """The indexes of one kind in a folder.

    Files of an index are named by a hash of its shard's path, kind, version and settings, so that indexes of different
    settings lie side by side. The array's name also has a hash of the shard's status: an array never changes.

    Attributes:
        folder: the folder.
        kind, version: format of the rows.
        settings: JSON of all that the rows depend on, besides the shard.
    """

    folder: Path
    kind: str
    version: int
    settings: str

    def array(self, path: str, status: ShardStatus) -> Path:
        """Return the file with the array of a shard at an absolute path."""
        return self.folder / f"{self._name('shard', path)}-{_hash(*status)[:16]}.npy"

    def manifest(self, path: str) -> Path:
        """Return the file with the record of a shard."""
        return self.folder / f"{self._name('shard', path)}.json"

    def table(self, paths: Sequence[str]) -> Path:
        """Return the file with the records of all shards."""
        return self.folder / f"{self._name('table', *paths)}.json"

    def write(
        self, path: str, status: ShardStatus, rows: np.ndarray, facts: Mapping[str, Any]
    ) -> IndexRecord:
        """Write the index of a shard. Its record appears last, when the array is complete.

        Raises:
            OutputError: the files cannot be written.
        """
        assert rows.ndim == 1 and rows.dtype.names and not rows.dtype.hasobject, "a structured array"
        array, before = self.array(path, status), self.read(path)
        with atomic_file(array) as file, writing(array):
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
            file.write(np.ascontiguousarray(rows).view(np.uint8).data)
            record = IndexRecord(*status, len(rows), file.tell(), dict(facts))
        head = self._head() | {"path": path}
        with atomic_file(self.manifest(path)) as file, writing(self.manifest(path)):
            file.write(json.dumps(head | record._asdict(), indent=1).encode())
        if before is not None and before.status != status:
            with suppress(OSError):
                self.array(path, before.status).unlink()
        return record

    def read(self, path: str) -> IndexRecord | None:
        """Return the record of a shard, or None if it is missing or damaged."""
        content = _read(self.manifest(path), self._head() | {"path": path})
        return None if content is None else _record([content.get(name) for name in IndexRecord._fields])

    def write_table(self, paths: Sequence[str], records: Sequence[IndexRecord]) -> None:
        """Write the records of all shards in one file.

        Raises:
            OutputError: the file cannot be written.
        """
        content = self._head() | {"shards": len(paths), "records": records}
        with atomic_file(self.table(paths)) as file, writing(self.table(paths)):
            file.write(json.dumps(content, separators=(",", ":")).encode())

    def read_table(self, paths: Sequence[str]) -> list[IndexRecord | None]:
        """Return the record of each shard, or None for those that are missing or damaged."""
        content = _read(self.table(paths), self._head() | {"shards": len(paths)})
        records = None if content is None else content.get("records")
        if not isinstance(records, list) or len(records) != len(paths):
            return [None] * len(paths)
        return [_record(each) for each in records]

    def is_whole(self, path: str, record: IndexRecord) -> bool:
        """Return True if the array of a shard has its size."""
        try:
            return os.stat(self.array(path, record.status)).st_size == record.bytes
        except OSError:
            return False

    def _head(self) -> dict[str, Any]:
        return {"format": FORMAT, "kind": self.kind, "version": self.version, "settings": self.settings}

    def _name(self, *parts: str) -> str:
        return _hash(self.kind, self.version, self.settings, *parts)[:32]


@lru_cache(MOST_OPEN)
def mapped(file: Path, rows: int) -> np.ndarray:
    """Return the array of an index, mapped into memory read-only. The last ones of a process stay mapped.

    Raises:
        StorageError: the file is missing or damaged. A damaged one is removed, so that it is computed again.
    """
    try:
        with file.open("rb", buffering=0) as opened:
            head = opened.read(_LONGEST_HEAD)
            memory = mmap(opened.fileno(), 0, access=ACCESS_READ)
        start = _SIZES + int.from_bytes(head[_SIZES - 2 : _SIZES], "little")
        shape = _SHAPE.search(head, 0, start)
        if not head.startswith(_MAGIC) or shape is None or int(shape[1]) != rows:
            raise ValueError(f"expected an array of {count(f'{rows:,}', 'row')}")
        dtype = _dtype(head[_SIZES : shape.start()], head[shape.end() : start].rstrip())
        if not dtype.names:
            raise ValueError("expected structured rows")
        array = np.frombuffer(memory, dtype, rows, start) if rows else np.empty(0, dtype)
        array.flags.writeable = False
        return array
    except Exception as error:  # of damaged files, numpy raises any type of error
        raise_own(error)
        if not isinstance(error, OSError):
            with suppress(OSError):
                file.unlink()
        reason = (error.strerror if isinstance(error, OSError) else None) or describe_error(error)
        raise StorageError(
            f"{printable(file)}: cannot read this index: {reason}; start again to compute it anew"
        ) from error


@lru_cache(MOST_OPEN)
def _dtype(before: bytes, after: bytes) -> np.dtype[Any]:
    """Return the type of rows in the header of an array: the text before and after its shape.

    numpy takes ten times as long to parse a header as to map the rows, and all arrays of a data set have the same text.
    """
    text = before + b"'shape': (0,)" + after
    header = BytesIO(len(text).to_bytes(2, "little") + text)
    _, _, dtype = np.lib.format.read_array_header_1_0(header)
    return dtype


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears, or replaces an older one, at the end of the block. Others may write it, too.

    Raises:
        OutputError: the file cannot be opened or completed. After any error, an older one stays as it was.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with writing(path):
        file = partial.open("xb")
    try:
        with file:
            yield file
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        with writing(path):
            partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove files that killed processes did not complete: those that nobody wrote to for a day."""
    for file in folder.glob(".*.partial"):
        with suppress(OSError):  # another process may remove it
            if time.time() - file.stat().st_mtime > _DAY:
                file.unlink()


def _read(file: Path, head: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a JSON object whose items include `head`, or None for any other file."""
    try:
        if size_problem(file) is not None:
            return None
        content = json_object(file.read_bytes().decode())
    except (OSError, ValueError, DreamkitError):
        return None
    return content if all(content.get(key) == value for key, value in head.items()) else None


def _record(values: Any) -> IndexRecord | None:
    if not isinstance(values, list) or len(values) != len(IndexRecord._fields):
        return None
    *numbers, facts = values
    if not all(type(number) is int for number in numbers) or not isinstance(facts, dict):
        return None
    record = IndexRecord._make(values)
    return record if min(record.size, record.rows, record.bytes) >= 0 else None


def _hash(*parts: str | int) -> str:
    text = json.dumps(parts)  # unlike a join, it has one meaning
    return hashlib.sha256(text.encode()).hexdigest()
