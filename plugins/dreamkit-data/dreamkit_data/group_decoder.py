"""Row groups of Parquet files, decoded as a whole or part by part. Several threads may decode different ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dreamkit import Location
from dreamkit_data.buckets import BLOCK, is_remote, open_object

LARGE: Final = 2**27  # bytes of a row group, decoded; a larger one is read in parts
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


class GroupDecoder:
    """A decoder of row groups, which leaves the last files open.

    A file may repeat a large value for each of many rows, in few bytes. So the values of a row group that is read as a
    whole stay in a dictionary, as they are in the file.

    Args:
        files: the files.
        statuses: size and time of change of each file, or status of the object.
        columns: columns to read.
        leaves: paths of the columns of bytes and texts, for each file.
    """

    def __init__(
        self,
        files: Sequence[Location],
        statuses: Sequence[tuple[int, int]],
        columns: Sequence[str],
        leaves: Sequence[Sequence[str]],
    ) -> None:
        self._files, self._statuses = files, statuses
        self._columns, self._leaves = list(columns), leaves
        self._lock = Lock()
        self._idle: list[tuple[tuple[int, bool], pq.ParquetFile]] = []
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()

    def decode(self, group: RowGroup, part: int) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """Yield number and batches of each part of a row group, from where it was left up to `part`.

        Two threads may not decode the same row group at once. After an error the row group is read from its start.

        Raises:
            EOFError: the row group has fewer rows than the file states.
            Exception: of pyarrow, for damaged files.
        """
        place, kind = (group.file, group.number), (group.file, group.is_whole)
        with self._lock:
            stream = self._streams.pop(place, None)
        if stream is None or stream.part > part:
            # One reader is never used by two threads.
            reader = self._reader(*kind)
            batches = reader.iter_batches(group.part, [group.number], self._columns, use_threads=False)
            stream = _Stream(reader, iter(batches))
        while stream.part <= part:
            first = stream.part * group.part
            yield stream.part, stream.next(min(group.part, group.rows - first))
        with self._lock:
            if stream.part * group.part < group.rows:
                self._streams[place] = stream
                if len(self._streams) > MOST_OPEN:
                    self._streams.popitem(last=False)
            else:
                self._idle.append((kind, stream.reader))
                del self._idle[:-MOST_OPEN]

    def _reader(self, file: int, is_whole: bool) -> pq.ParquetFile:
        """Return a reader that no other thread uses."""
        with self._lock:
            for number, (kind, reader) in enumerate(self._idle):
                if kind == (file, is_whole):
                    del self._idle[number]
                    return reader
        path = self._files[file]
        # Of a file, one column chunk after another, in pieces: nothing is read ahead by other threads. Of an object,
        # neighbouring chunks of a row group that is read as a whole are one request.
        return pq.ParquetFile(
            open_object(path, self._statuses[file], 1) if is_remote(path) else path,
            pre_buffer=is_remote(path) and is_whole,
            buffer_size=BLOCK if is_remote(path) else 2**20,
            read_dictionary=self._leaves[file] if is_whole else None,
        )


class _Stream:
    """A row group that is read in parts; `part` is the next one."""

    def __init__(self, reader: pq.ParquetFile, batches: Iterator[pa.RecordBatch]) -> None:
        self.reader = reader
        self.batches = batches
        self.part = 0

    def next(self, rows: int) -> list[pa.RecordBatch]:
        """Return the batches of the next part.

        Raises:
            EOFError: the row group has fewer rows than the file states.
        """
        batches: list[pa.RecordBatch] = []
        while rows > 0:
            batch = next(self.batches, None)
            if batch is None:
                raise EOFError("it ends early")
            batches.append(batch)
            rows -= batch.num_rows
        self.part += 1
        return batches
