"""Rows of text tables by number: values between tabs or commas, plain or in quotes."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from dreamkit import (
    DocumentError,
    Location,
    StorageError,
    count,
    did_you_mean,
    excerpt,
    indexed,
    printable,
    unpacked,
)
from dreamkit_data.bucket_reads import open_object
from dreamkit_data.buckets import is_remote, statuses
from dreamkit_data.rows import Row
from dreamkit_data.spans import OpenFiles, Span, changed_error
from dreamkit_data.text_lines import Dialect, read_dialect, read_rows, split_row

VERSION: Final = 1
ROW: Final = np.dtype([("offset", "<u8"), ("size", "<u4"), ("line", "<u4")])
PACKED: Final = (".gz", ".zst")  # suffixes
CHUNK: Final = 2**16  # rows that are collected before they become an array


class Layout(NamedTuple):
    """The layout of text tables.

    Attributes:
        columns: columns to read: their names in the first line, or else numbers from 0.
        has_header: the first line has the names of the columns.
        quotes: values may be in quotes, as `csv` writes them; None: they may if commas separate them.
    """

    columns: tuple[str, ...]
    has_header: bool = True
    quotes: bool | None = None


class TextRows:
    """The rows of text tables in UTF-8, in the order of the files. Tabs separate the values if the first line has one.

    Each row is read once, to index it. Its number of values must be that of the first line. Blank lines are skipped. A
    packed file is unpacked beside its index.

    Attributes:
        notes: a line about quotes that stay in the values, if there may be some that do not belong to them.

    Raises:
        DocumentError: a missing file, one that is not a table in UTF-8, a missing column, a row with another number of
            values, or no rows.
    """

    def __init__(self, files: Sequence[Location], layout: Layout, folder: Path | None = None) -> None:
        self.files = list(files)
        self.layout = layout
        self._texts = _unpacked_texts(self.files, folder)
        self._index = indexed(
            self.files,
            partial(list_rows, layout=layout, folder=folder),
            kind="table",
            version=VERSION,
            settings=layout._asdict(),
            folder=folder,
            statuses=statuses,
        )
        self._open = OpenFiles()
        self._before = np.concatenate([[0], np.cumsum(self._index.rows)])
        quoted = sum(facts["quoted"] for facts in self._index.facts) if layout.quotes is None else 0
        self.notes = [
            f"{printable(self.files[0])}: quotes around values stay in {count(f'{quoted:,}', 'row')}; set quotes: true "
            "to remove them, or quotes: false if they belong to the values"
        ] * bool(quoted)
        if not len(self):
            raise DocumentError(f"{printable(self.files[0])}: no rows; correct the path of the data set")

    def __len__(self) -> int:
        return int(self._before[-1])

    def fingerprint(self) -> dict[str, str]:
        """Return a string that identifies the files: a hash of the rows and bytes of each."""
        sizes = [status.size for status in self._index.statuses]
        text = repr([self._index.rows.tolist(), sizes])
        return {"rows and sizes": hashlib.sha256(text.encode()).hexdigest()[:32]}

    def __getitem__(self, index: int) -> Row:
        """Return a row.

        Raises:
            StorageError: the disk or network fails, or the file or its index changed since the start.
        """
        index = range(len(self))[index]
        file = int(np.searchsorted(self._before, index, side="right")) - 1
        path, facts = self.files[file], self._index.facts[file]
        rows = self._index[file]
        if rows.dtype != ROW:
            raise changed_error(path)
        offset, size, line = rows[index - int(self._before[file])].tolist()
        where, text = f"{printable(path)}:{line}", self._texts[file]
        status = self._index.statuses[file] if text == path else None  # an unpacked file never changes
        data = self._open.read(Span(text, offset, size, status))
        try:
            values = split_row(data.decode(), Dialect(*facts["dialect"]))
        except (ValueError, StopIteration, csv.Error) as error:
            raise changed_error(path) from error
        if len(values) != facts["width"]:
            raise changed_error(path)
        names = zip(self.layout.columns, facts["columns"], strict=True)
        return Row(where, path, {name: values[number] for name, number in names})


def list_rows(path: Location, layout: Layout, folder: Path | None) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the rows of a text table: a structured array of `ROW`, and facts about the file.

    Raises:
        DocumentError: it is not a table in UTF-8, lacks a column, or has a row with another number of values.
    """
    name = printable(path)
    chunks: list[np.ndarray] = []
    rows: list[tuple[int, int, int]] = []
    try:
        with _opened_text(path, folder) as file:
            dialect = read_dialect(file, name, layout.quotes)
            places = read_rows(file, name, dialect)
            first = next(places, None)
            columns = [] if first is None else _column_numbers(first.values, layout, name)
            quoted = 0
            for row in places if first is None or layout.has_header else chain([first], places):
                rows.append(row[1:])
                quoted += not dialect.quotes and any(_is_quoted(row.values[number]) for number in columns)
                if len(rows) == CHUNK:
                    chunks.append(np.array(rows, ROW))
                    rows = []
    except OSError as error:
        raise StorageError(f"{name}: cannot read the file: {error.strerror}") from error
    index = np.concatenate([*chunks, np.array(rows, ROW)])
    return index, {
        "dialect": list(dialect),
        "width": 0 if first is None else len(first.values),
        "columns": columns,
        "quoted": quoted,
        "cost": {"documents": len(index)},
    }


def _unpacked_texts(files: Sequence[Location], folder: Path | None) -> list[Location]:
    """Return the texts of files, of which packed ones are unpacked beside the index.

    They are unpacked one after another, so that each is compared with the space that the others left.
    """
    urls = [path for path in files if is_remote(path)]
    packed = [url for url in urls if url.lower().endswith(PACKED)]
    known = dict(zip(packed, statuses(packed), strict=True))
    return [
        unpacked(path, folder, status=known[path], open_object=open_object)
        if is_remote(path) and path in known
        else unpacked(path, folder)
        for path in files
    ]


def _opened_text(path: Location, folder: Path | None) -> BinaryIO:
    (text,) = _unpacked_texts([path], folder)
    if is_remote(text):
        return open_object(text)
    if not os.path.isfile(text):  # to open a named pipe may wait forever
        raise DocumentError(f"{printable(path)}: expected a regular file")
    return Path(text).open("rb")


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] == '"'


def _column_numbers(first: Sequence[str], layout: Layout, name: str) -> list[int]:
    """Return the numbers of the columns to read, from the values of the first line."""
    numbers = []
    for column in layout.columns:
        if not layout.has_header:
            if not (column.isascii() and column.isdigit() and int(column) < len(first)):
                raise DocumentError(
                    f"{name}: expected the number of one of {count(len(first), 'column')}, from 0, got "
                    f"'{excerpt(column)}'"
                )
            numbers.append(int(column))
        elif first.count(column) != 1:
            names = [excerpt(each) for each in first[:100]]
            problem, hint = (
                ("got it twice", "") if column in first else ("got none", f"; {did_you_mean(column, names)}")
            )
            raise DocumentError(
                f"{name}:1: expected one column '{excerpt(column)}' in the first line, {problem}; if this line has no "
                f"names, set header: false and name columns by their numbers from 0{hint}"
            )
        else:
            numbers.append(list(first).index(column))
    return numbers
