"""Row groups of Parquet files, decoded as a whole or part by part. Several threads may decode different ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dreamkit import Location
from dreamkit_data.bucket_reads import BLOCK, open_object
from dreamkit_data.buckets import is_remote

LARGE: Final = 2**27  # bytes of a row group, decoded; a larger one is read in parts
PART: Final = 256  # rows of a part, at most
MOST_OPEN: Final = 16  # files whose metadata are kept, and row groups that are read in parts


class ParquetFiles(NamedTuple):
    """Parquet files, and the columns that are read of them.

    Attributes:
        paths: the files, or objects in buckets.
        statuses: size and time of change of each file, or status of the object.
        columns: columns to read.
        leaves: paths of the columns of bytes and texts, for each file.
    """

    paths: Sequence[Location]
    statuses: Sequence[tuple[int, int]]
    columns: Sequence[str]
    leaves: Sequence[Sequence[str]]


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
    """A decoder of row groups, which keeps the metadata of the last files.

    A file may repeat a large value for each of many rows, in few bytes. So the values of a row group that is read as a
    whole stay in a dictionary, as they are in the file.
    """

    def __init__(self, files: ParquetFiles) -> None:
        self._files = files
        self._lock = Lock()
        self._metadata: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()

    def decode(self, group: RowGroup, part: int) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """Yield number and batches of each part of a row group, from where it was left up to `part`.

        Two threads may not decode the same row group at once. After an error the row group is read from its start.

        Raises:
            EOFError: the row group has fewer rows than the file states.
            Exception: of pyarrow, for damaged files.
        """
        place = group.file, group.number
        with self._lock:
            stream = self._streams.pop(place, None)
        if stream is None or stream.part > part:
            reader = self._reader(group.file, group.is_whole)
            batches = reader.iter_batches(
                group.part, [group.number], list(self._files.columns), use_threads=False
            )
            stream = _Stream(iter(batches))
        while stream.part <= part:
            first = stream.part * group.part
            yield stream.part, stream.next(min(group.part, group.rows - first))
        if stream.part * group.part < group.rows:
            with self._lock:
                self._streams[place] = stream
                if len(self._streams) > MOST_OPEN:
                    self._streams.popitem(last=False)

    def _reader(self, file: int, is_whole: bool) -> pq.ParquetFile:
        """Return a reader for one thread and one row group: it holds what it read of an object until it is freed."""
        path = self._files.paths[file]
        with self._lock:
            metadata = self._metadata.get(file)
        # Of a file, one column chunk after another, in pieces: nothing is read ahead by other threads. Of an object,
        # neighbouring chunks of a row group that is read as a whole are one request.
        reader = pq.ParquetFile(
            open_object(path, self._files.statuses[file], 1, is_patient=False) if is_remote(path) else path,
            metadata=metadata,
            pre_buffer=is_remote(path) and is_whole,
            buffer_size=BLOCK if is_remote(path) else 2**20,
            read_dictionary=self._files.leaves[file] if is_whole else None,
        )
        with self._lock:
            self._metadata[file] = reader.metadata
            self._metadata.move_to_end(file)
            if len(self._metadata) > MOST_OPEN:
                self._metadata.popitem(last=False)
        return reader


class _Stream:
    """A row group that is read in parts; `part` is the next one."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
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
