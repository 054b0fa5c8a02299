"""Row groups of Parquet files: read once for many rows, and in parts if they are large."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dreamkit import Location, describe_error, read_error
from dreamkit_data.buckets import BLOCK, is_remote, open_object
from dreamkit_data.spans import changed_error

LARGE: Final = 2**27  # bytes of a row group, decoded; a larger one is read in parts
MEMORY: Final = 256  # MiB of decoded rows that a process keeps
PART: Final = 256  # rows of a part, at most
MOST_OPEN: Final = 16  # files, and row groups that are read in parts


class RowGroup(NamedTuple):
    """A row group.

    Attributes:
        file: number of its file.
        number: number in the file.
        rows: number of rows.
        bytes: size in memory that the file states.
        is_plain: flag: pyarrow can read its bytes and texts as dictionaries.
    """

    file: int
    number: int
    rows: int
    bytes: int
    is_plain: bool

    @property
    def is_whole(self) -> bool:
        """Flag: it is read as a whole."""
        return self.is_plain and self.bytes <= LARGE

    @property
    def part(self) -> int:
        """Rows of a part; all rows, if the row group is read as a whole."""
        return self.rows if self.is_whole else max(1, min(PART, LARGE * self.rows // max(self.bytes, 1)))


class RowGroups:
    """A reader of row groups, which keeps the last decoded ones.

    A file may repeat a large value for each of many rows, in few bytes. So the values of a row group that is read as a
    whole stay in a dictionary, as they are in the file.

    Args:
        files: the files.
        statuses: size and time of change of each file, or status of the object.
        columns: columns to read.
        leaves: paths of the columns of bytes and texts, for each file.
        memory: MiB of decoded rows to keep; the last row group is kept if it is larger, too.
    """

    def __init__(
        self,
        files: Sequence[Location],
        statuses: Sequence[tuple[int, int]],
        columns: Sequence[str],
        leaves: Sequence[Sequence[str]],
        memory: int,
    ) -> None:
        self.files = files
        self.columns = list(columns)
        self.leaves = leaves
        self.most_bytes = memory << 20
        self._statuses = statuses
        self._forget()

    def batch(self, group: RowGroup, row: int, where: str) -> tuple[pa.RecordBatch, int]:
        """Return a batch that has row `row` of a row group, and the row's number in the batch.

        The message of a DocumentError starts with `where`, the place of the row.

        Raises:
            DocumentError: the row group is damaged.
            StorageError: the disk or network fails, or the file changed since the start.
        """
        part, row = divmod(row, group.part)
        key = group.file, group.number, part
        if key not in self._parts:
            self._read(group, part, where)
        self._parts.move_to_end(key)
        for batch in self._parts[key]:
            if row < batch.num_rows:
                return batch, row
            row -= batch.num_rows
        raise AssertionError("a part has its rows")

    def _read(self, group: RowGroup, part: int, where: str) -> None:
        try:
            self._decode(group, part)
        except Exception as error:  # damaged files raise any type of error
            self._streams.pop((group.file, group.number), None)
            self._refuse_change(group.file, error)
            reason = "it ends early" if isinstance(error, StopIteration) else describe_error(error)
            message = (
                f"{where}: cannot read row group {group.number}: {reason}; write or download the file again"
            )
            raise read_error(message, error) from error
        self._refuse_change(group.file)

    def _decode(self, group: RowGroup, part: int) -> None:
        """Decode a row group from where it was left up to a part. The parts before it are kept, too."""
        key = group.file, group.number
        stream = self._streams.pop(key, None)
        if stream is None or stream.part > part:
            reader = self._reader(group.file, is_whole=group.is_whole)
            batches = reader.iter_batches(group.part, [group.number], self.columns, use_threads=False)
            stream = _Stream(iter(batches))
        while stream.part <= part:
            first = stream.part * group.part
            self._keep((*key, stream.part), stream.next(min(group.part, group.rows - first)))
        if stream.part * group.part < group.rows:
            self._streams[key] = stream
            if len(self._streams) > MOST_OPEN:
                self._streams.popitem(last=False)

    def _reader(self, file: int, *, is_whole: bool) -> pq.ParquetFile:
        key = file, is_whole
        if key not in self._readers:
            path, is_object = self.files[file], is_remote(self.files[file])
            # Of a file, one column chunk after another, in pieces: nothing is read ahead by other threads. Of an
            # object, neighbouring chunks of a row group that is read as a whole are one request.
            self._readers[key] = pq.ParquetFile(
                open_object(path, self._statuses[file], 1) if is_remote(path) else path,
                pre_buffer=is_object and is_whole,
                buffer_size=BLOCK if is_object else 2**20,
                read_dictionary=self.leaves[file] if is_whole else None,
            )
            if len(self._readers) > MOST_OPEN:
                self._readers.popitem(last=False)
        self._readers.move_to_end(key)
        return self._readers[key]

    def _keep(self, key: tuple[int, int, int], batches: list[pa.RecordBatch]) -> None:
        """Keep decoded rows, and drop the oldest ones if these are too many."""
        self._bytes += _size(batches) - _size(self._parts.pop(key, []))
        self._parts[key] = batches
        while self._bytes > self.most_bytes and len(self._parts) > 1:
            self._bytes -= _size(self._parts.popitem(last=False)[1])

    def _refuse_change(self, file: int, cause: Exception | None = None) -> None:
        path = self.files[file]  # each read of an object compares its status
        if not is_remote(path) and _status(path) != self._statuses[file]:
            raise changed_error(path) from cause

    def _forget(self) -> None:
        self._readers: OrderedDict[tuple[int, bool], pq.ParquetFile] = OrderedDict()
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()
        self._parts: OrderedDict[tuple[int, int, int], list[pa.RecordBatch]] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        names = ("files", "columns", "leaves", "most_bytes", "_statuses")
        return {name: value for name, value in vars(self).items() if name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()


class _Stream:
    """A row group that is read in parts; `part` is the next one."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self.batches = batches
        self.part = 0

    def next(self, rows: int) -> list[pa.RecordBatch]:
        """Return the batches of the next part.

        Raises:
            StopIteration: the row group has fewer rows than the file states.
        """
        batches: list[pa.RecordBatch] = []
        while rows > 0:
            batches.append(next(self.batches))
            rows -= batches[-1].num_rows
        self.part += 1
        return batches


def _size(batches: Sequence[pa.RecordBatch]) -> int:
    return sum(batch.nbytes for batch in batches)


def _status(path: Location) -> tuple[int, int] | None:
    """Return size and time of change of a file, or None if it cannot be reached."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
