"""Rows of Parquet files by number, in memory that is constant in the number of rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from dreamkit import (
    DocumentError,
    Location,
    StorageError,
    count,
    describe_error,
    indexed,
    printable,
    read_error,
)
from dreamkit_data.bucket_reads import open_object
from dreamkit_data.buckets import is_remote, statuses
from dreamkit_data.columns import Kind, column_problem, is_bytes
from dreamkit_data.group_decoder import LARGE, ParquetFiles, RowGroup
from dreamkit_data.row_groups import MEMORY, RowGroups
from dreamkit_data.rows import Row
from dreamkit_data.spans import changed_error

VERSION: Final = 2
GROUP: Final = np.dtype([("rows", "<i8"), ("bytes", "<i8"), ("stored", "<i8"), ("plain", "?")])
SIZES: Final = ("rows", "bytes", "stored")
FOOTER: Final = 2**16  # bytes that pyarrow reads first
MOST: Final = 2**48  # rows or bytes of a row group
# Encodings of texts and bytes that pyarrow reads as a dictionary. The others share parts of values between rows.
BYTES: Final = "BYTE_ARRAY"
PLAIN: Final = frozenset({"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"})


class ParquetRows:
    """The rows of Parquet files, in the order of the files.

    The row groups are listed at the start. A process reads a whole row group for a row, and keeps the last ones.

    Args:
        files: the files, or objects in buckets.
        columns: columns to read, with what each holds.
        folder: folder of the index; None is that of the user's cache.
        memory: MiB of decoded rows that a process keeps.

    Attributes:
        groups: rows, bytes and stored bytes of each row group, in the columns that are read, and whether pyarrow can
            read these as dictionaries; a structured array.
        notes: a line about row groups that are too large to be kept whole, if there are any.

    Raises:
        DocumentError: a missing or damaged file, one that is not Parquet, no rows, or a column that is missing or of
            another type.
    """

    def __init__(
        self,
        files: Sequence[Location],
        columns: Mapping[str, Kind],
        folder: Path | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.files = list(files)
        self.columns = dict(columns)
        build = partial(list_row_groups, columns=self.columns)
        index = indexed(
            self.files,
            build,
            kind="parquet",
            version=VERSION,
            settings=self.columns,
            folder=folder,
            statuses=statuses,
        )
        for path, groups in zip(self.files, index, strict=True):
            if groups.dtype != GROUP or any((groups[key] < 0).any() for key in SIZES):
                raise changed_error(path)
        self.groups = np.concatenate(list(index))
        self._rows_before = np.concatenate([[0], np.cumsum(self.groups["rows"])])  # each row group
        self._groups_before = np.concatenate([[0], np.cumsum(index.rows)])  # each file
        self._bytes_alone = {name for name in columns if all(name in f["bytes alone"] for f in index.facts)}
        leaves = [facts["leaves"] for facts in index.facts]
        self._reader = RowGroups(ParquetFiles(self.files, index.statuses, list(columns), leaves), memory)
        if not len(self):
            raise DocumentError(f"{printable(self.files[0])}: no rows; correct the path of the data set")
        self.notes = self._size_notes()

    def __len__(self) -> int:
        return int(self._rows_before[-1])

    def __getitem__(self, index: int) -> Row:
        """Return a row.

        Raises:
            DocumentError: its row group, or a text in it, is damaged.
            StorageError: the disk or network fails, or the file changed since the start.
        """
        index = range(len(self))[index]
        group = int(np.searchsorted(self._rows_before, index, side="right")) - 1
        file = int(np.searchsorted(self._groups_before, group, side="right")) - 1
        first = int(self._groups_before[file])
        where = f"{printable(self.files[file])}:{index - int(self._rows_before[first])}"
        rows, size, _, is_plain = self.groups[group].tolist()
        place = RowGroup(file, group - first, rows, size, is_plain)
        batch, row = self._reader.batch(place, index - int(self._rows_before[group]), where)
        return Row(where, self.files[file], {name: _value(batch, name, row, where) for name in self.columns})

    def has_bytes_alone(self, column: str) -> bool:
        """Return True if a column has bytes in all files, so that none of its values is a path."""
        return column in self._bytes_alone

    def fingerprint(self) -> dict[str, str]:
        """Return strings that identify the rows: their number, and a hash of the sizes of all row groups.

        To hash documents all over the files would decode a row group for each.
        """
        return {
            "documents": f"{len(self):,}",
            "row groups": hashlib.sha256(self.groups.tobytes()).hexdigest()[:32],
        }

    def _size_notes(self) -> list[str]:
        largest = int(self.groups["bytes"].argmax())
        size = int(self.groups["bytes"][largest])
        if size <= LARGE:
            return []
        file = int(np.searchsorted(self._groups_before, largest, side="right")) - 1
        many = count(f"{int((self.groups['bytes'] > LARGE).sum()):,}", "row group")
        return [
            f"{printable(self.files[file])}: {many} of more than {LARGE >> 20} MiB, up to {size >> 20:,} MiB, which "
            "are slow to read in another order; write the file with fewer rows in each row group (pyarrow: "
            "row_group_size=100), or set shuffle: none"
        ]


def list_row_groups(path: Location, columns: Mapping[str, Kind]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the row groups of a file: a structured array of `GROUP`, and facts about the columns.

    Raises:
        DocumentError: the file is damaged or not Parquet, or a column is missing or of another type.
    """
    name = printable(path)
    if not is_remote(path) and not os.path.isfile(path):  # to open a named pipe may wait forever
        raise DocumentError(f"{name}: expected a regular file")
    try:
        with pq.ParquetFile(open_object(path, block=FOOTER) if is_remote(path) else path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
            problem = column_problem(schema, columns)
            read = [
                n
                for n, leaf in enumerate(leaves)
                if leaf.path.partition(".")[0] in columns or leaf.path in columns
            ]
            groups = np.empty(metadata.num_row_groups, GROUP)
            for number in range(len(groups)):
                group = metadata.row_group(number)
                chunks = [group.column(leaf) for leaf in read]
                groups[number] = (
                    group.num_rows,
                    sum(chunk.total_uncompressed_size for chunk in chunks),
                    sum(chunk.total_compressed_size for chunk in chunks),
                    all(PLAIN.issuperset(c.encodings) for c in chunks if c.physical_type == BYTES),
                )
    except StorageError:  # of an object, which names it
        raise
    except Exception as error:  # damaged files raise any type of error
        message = (
            f"{name}: cannot read the file as Parquet: {describe_error(error)}; write or download it again"
        )
        raise read_error(message, error) from error
    if problem is None and any(((groups[key] < 0) | (groups[key] > MOST)).any() for key in SIZES):
        problem = "the sizes of its row groups are damaged; write or download it again"
    if problem is not None:
        raise DocumentError(f"{name}: {problem}")
    texts = [leaves[number].path for number in read if leaves[number].physical_type == BYTES]
    return groups, {
        "leaves": texts,
        "bytes alone": [column for column in columns if is_bytes(schema.field(column).type)],
        "cost": {
            "reads": 2,
            "bytes": metadata.serialized_size,
            "documents": metadata.num_rows,
        },  # its end alone
    }


def _value(batch: Any, name: str, row: int, where: str) -> Any:
    try:
        return batch.column(name)[row].as_py()
    except Exception as error:  # such as bytes of a text that are not UTF-8
        raise DocumentError(f"{where}: {printable(name)}: {describe_error(error)}") from error
