"""The last decoded row groups of Parquet files, in bounded memory. Threads decode different ones at once."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from threading import Condition
from typing import Any, Final

import pyarrow as pa

from dreamkit import Location, StorageError, describe_error, read_error
from dreamkit_data.buckets import is_remote
from dreamkit_data.group_decoder import LARGE, GroupDecoder, ParquetFiles, RowGroup
from dreamkit_data.spans import changed_error

MEMORY: Final = 256  # MiB of decoded rows that a process keeps


class RowGroups:
    """A reader of row groups, which keeps the last decoded ones in each process.

    Threads decode different row groups at once, up to the size of the memory, and wait for one that another thread
    decodes.

    Args:
        files: the files, and what is read of them.
        memory: MiB of decoded rows to keep; the last row group is kept if it is larger, too.
    """

    def __init__(self, files: ParquetFiles, memory: int) -> None:
        self.files = files
        self.most_bytes = memory << 20
        self._decoded: dict[int, Decoded] = {}  # by process

    def batch(self, group: RowGroup, row: int, where: str) -> tuple[pa.RecordBatch, int]:
        """Return a batch that has row `row` of a row group, and the row's number in the batch.

        The message of a DocumentError starts with `where`, the place of the row.

        Raises:
            DocumentError: the row group is damaged.
            StorageError: the disk or network fails, or the file changed since the start.
        """
        part, row = divmod(row, group.part)
        for batch in self._part(group, part, where):
            if row < batch.num_rows:
                return batch, row
            row -= batch.num_rows
        raise AssertionError("a part has its rows")

    def _part(self, group: RowGroup, part: int, where: str) -> list[pa.RecordBatch]:
        decoded, place = self.decoded(), (group.file, group.number)
        key, cost = (*place, part), min(group.bytes, LARGE)
        with decoded.changed:
            while key not in decoded.parts and not decoded.has_room(place, cost, self.most_bytes):
                decoded.changed.wait()
            if key in decoded.parts:
                decoded.parts.move_to_end(key)
                return decoded.parts[key]
            decoded.running[place] = cost
        batches: list[pa.RecordBatch] = []
        try:
            for number, batches in decoded.decoder.decode(group, part):
                decoded.keep((*place, number), batches, self.most_bytes)
        except StorageError:  # of an object, which names it
            raise
        except Exception as error:  # damaged files raise any type of error
            self._refuse_change(group.file, error)
            reason = str(error) if isinstance(error, EOFError) else describe_error(error)
            message = (
                f"{where}: cannot read row group {group.number}: {reason}; write or download the file again"
            )
            raise read_error(message, error) from error
        finally:
            with decoded.changed:
                del decoded.running[place]
                decoded.changed.notify_all()
        self._refuse_change(group.file)
        return batches

    def _refuse_change(self, file: int, cause: Exception | None = None) -> None:
        path = self.files.paths[file]  # each read of an object compares its status
        if not is_remote(path) and _status(path) != self.files.statuses[file]:
            raise changed_error(path) from cause

    def decoded(self) -> Decoded:
        """Return what this process decoded. A forked one may start while threads of its parent change theirs."""
        process = os.getpid()
        if process not in self._decoded:
            self._decoded.setdefault(
                process, Decoded(GroupDecoder(self.files))
            )  # atomic: threads get the same one
        return self._decoded[process]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_decoded": {}}


class Decoded:
    """The decoded row groups of a process.

    Attributes:
        decoder: the decoder of others.
        parts: batches of each part of a row group; the last used one is the last.
        bytes: their size.
        running: bytes of each row group that a thread decodes.
        changed: lock of all this, and the signal that threads wait for.
    """

    def __init__(self, decoder: GroupDecoder) -> None:
        self.decoder = decoder
        self.parts: OrderedDict[tuple[int, int, int], list[pa.RecordBatch]] = OrderedDict()
        self.bytes = 0
        self.running: dict[tuple[int, int], int] = {}
        self.changed = Condition()

    def has_room(self, place: tuple[int, int], cost: int, most: int) -> bool:
        """Return True if a row group of `cost` bytes may be decoded beside the running ones, which lack it."""
        return place not in self.running and (not self.running or cost + sum(self.running.values()) <= most)

    def keep(self, key: tuple[int, int, int], batches: list[pa.RecordBatch], most: int) -> None:
        """Keep a part, and drop the oldest ones if they have more than `most` bytes together."""
        with self.changed:
            self.bytes += _size(batches) - _size(self.parts.pop(key, []))
            self.parts[key] = batches
            while self.bytes > most and len(self.parts) > 1:
                self.bytes -= _size(self.parts.popitem(last=False)[1])


def _size(batches: Sequence[pa.RecordBatch]) -> int:
    return sum(batch.nbytes for batch in batches)


def _status(path: Location) -> tuple[int, int] | None:
    """Return size and time of change of a file, or None if it cannot be reached."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
