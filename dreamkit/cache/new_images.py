"""The plan of a cache's rows: which documents have new images, and which files get their rows.

It follows from the lists of images alone. Each image has a row where it is first, in the order of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from dreamkit.cache.listing import ImageList
from dreamkit.cache.manifest import Table
from dreamkit.cache.shards import KEY_BYTES

PICTURES: Final = 32  # computed at a time
# Small data has several blocks, for several processes; each is at least some batches.
BLOCKS: Final = 64
LEAST_ROWS: Final = 8 * PICTURES


class TableImages(NamedTuple):
    """The distinct images of a table: keys (images, KEY_BYTES), and the first document of each, in ascending order."""

    keys: Tensor
    documents: Tensor

    @classmethod
    def of(cls, keys: bytearray, documents: Tensor, blank: bytes) -> TableImages:
        """Return those among images in the order of their documents, without the `blank` one."""
        if not keys:
            return cls(torch.zeros(0, KEY_BYTES, dtype=torch.uint8), documents)
        all_keys = torch.frombuffer(keys, dtype=torch.uint8).view(-1, KEY_BYTES)
        # two numbers of 64 bits; equal keys stay in the order of their documents
        first, second = (column.contiguous() for column in all_keys.view(torch.int64).unbind(1))
        order = second.argsort(stable=True)
        order = order[first[order].argsort(stable=True)]
        is_new = torch.ones(len(order), dtype=torch.bool)
        is_new[1:] = (first[order].diff() != 0) | (second[order].diff() != 0)
        rows = order[is_new].sort().values
        rows = rows[(all_keys[rows] != torch.frombuffer(bytearray(blank), dtype=torch.uint8)).any(1)]
        return cls(all_keys[rows], documents[rows])

    def keys_of(self, document: int) -> list[bytes]:
        """Return the keys of the images that are first in a document."""
        start, end = torch.searchsorted(self.documents, torch.tensor([document, document + 1])).tolist()
        return [bytes(key) for key in self.keys[start:end].tolist()]


class TableRows(NamedTuple):
    """The rows of one table in a block.

    Attributes:
        rows: number of images.
        first_file: number of the first file with them.
        has_blank: flag: the row of the blank image comes after them.
    """

    rows: int
    first_file: int
    has_blank: bool


class RowBlock(NamedTuple):
    """Documents whose new images one process computes, and their rows in each table that has some of them."""

    documents: Tensor
    tables: dict[Table, TableRows]

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())


class NewImages:
    """The distinct images of all tables, and the blocks that processes compute.

    Args:
        tables: the images of each table.
        rows_per_file: greatest number of rows in a file of each table.
    """

    def __init__(self, tables: Mapping[Table, TableImages], rows_per_file: Mapping[Table, int]) -> None:
        self.tables, self.rows_per_file = tables, rows_per_file
        self.blocks = [*self._blocks()]

    @classmethod
    def of(
        cls, lists: Iterable[ImageList], blanks: Mapping[Table, bytes], rows_per_file: Mapping[Table, int]
    ) -> NewImages:
        """Return the plan for lists in the order of their documents; `blanks` are the keys of the blank image."""
        keys = {table: bytearray() for table in blanks}
        documents = {table: [torch.zeros(0, dtype=torch.int64)] for table in blanks}
        for each in lists:
            for table, images in each.images.items():
                keys[table] += b"".join(images)
                documents[table].append(torch.tensor([*images.values()], dtype=torch.int64))
        return cls(
            {
                table: TableImages.of(keys[table], torch.cat(documents[table]), blanks[table])
                for table in blanks
            },
            rows_per_file,
        )

    @property
    def rows(self) -> int:
        """The number of rows of all tables, without the blank ones."""
        return sum(len(table.keys) for table in self.tables.values())

    def files(self, block: RowBlock, table: Table) -> range:
        """Return the numbers of the files with the rows of a block."""
        rows, first, has_blank = block.tables[table]
        return range(first, first - (-(rows + has_blank) // self.rows_per_file[table]))

    def _blocks(self) -> Iterator[RowBlock]:
        """Yield blocks of consecutive documents, each with as many rows of a table as are wanted, or one document."""
        most = [self._most_rows(table) for table in self.tables]
        documents, counts = self._row_counts()
        start, rows = 0, [0] * len(most)
        ends: list[tuple[int, list[int]]] = []
        for index, more in enumerate(counts.tolist()):
            together = [one + other for one, other in zip(rows, more, strict=True)]
            if index > start and any(each > limit for each, limit in zip(together, most, strict=True)):
                ends.append((index, rows))
                start, together = index, more
            rows = together
        if len(documents):
            ends.append((len(documents), rows))
        left = {table: len(images.keys) for table, images in self.tables.items()}
        first_file = dict.fromkeys(self.tables, 0)
        start = 0
        for end, rows in ends:
            tables = {}
            for table, number in zip(self.tables, rows, strict=True):
                left[table] -= number
                if number:
                    tables[table] = TableRows(number, first_file[table], left[table] == 0)
            block = RowBlock(documents[start:end], tables)
            for table in tables:
                first_file[table] = self.files(block, table).stop
            yield block
            start = end

    def _row_counts(self) -> tuple[Tensor, Tensor]:
        """Return the documents with new images (D,), and their numbers of rows in each table (D, tables)."""
        documents = torch.cat([images.documents for images in self.tables.values()]).unique()
        counts = [
            torch.searchsorted(images.documents, documents, right=True)
            - torch.searchsorted(images.documents, documents)
            for images in self.tables.values()
        ]
        return documents, torch.stack(counts, 1)

    def _most_rows(self, table: Table) -> int:
        """Return the greatest number of rows in a block of several documents."""
        wanted = max(LEAST_ROWS, -(-len(self.tables[table].keys) // BLOCKS))
        most = min(-(-wanted // PICTURES) * PICTURES, self.rows_per_file[table])
        return most - most % PICTURES if most > PICTURES else most
