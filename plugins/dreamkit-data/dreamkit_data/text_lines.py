"""Lines of text tables: their separator, their quotes, and where each row starts."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from dreamkit import DocumentError, count
from dreamkit_data.packed_files import unpacking_command

MOST_BYTES: Final = 2**27  # of a row; images in base64 make long ones
csv.field_size_limit(max(csv.field_size_limit(), MOST_BYTES))  # it has one limit for all its readers


class Dialect(NamedTuple):
    """The characters around the values of a table: their separator, and quotes if there may be some."""

    separator: str
    quotes: bool


class TableRow(NamedTuple):
    """A row of a table: its values, its offset and size in bytes, and its first line, from 1."""

    values: list[str]
    offset: int
    size: int
    line: int


def read_dialect(file: BinaryIO, name: str, quotes: bool | None) -> Dialect:
    """Return the dialect of a table, and leave `file` at its first row.

    Raises:
        DocumentError: the file is packed or binary, or its first line has neither a tab nor a comma.
    """
    start = file.read(3)
    offset = len(codecs.BOM_UTF8) if start == codecs.BOM_UTF8 else 0
    file.seek(offset)
    line = file.readline(MOST_BYTES)
    if command := unpacking_command(line):
        raise DocumentError(f"{name}: expected a table, got a packed file; unpack it with {command}")
    if b"\0" in line:
        raise DocumentError(f"{name}: expected a table in UTF-8 or Parquet, got another format")
    file.seek(offset)
    if not line.strip():
        return Dialect("\t", bool(quotes))
    separator = next((character for character in "\t," if character.encode() in line), None)
    if separator is None:
        raise DocumentError(f"{name}:1: expected values between tabs or commas, got a line without them")
    return Dialect(separator, separator == "," if quotes is None else quotes)


def read_rows(file: BinaryIO, name: str, dialect: Dialect) -> Iterator[TableRow]:
    """Yield the rows of a table from the file's position on; blank lines are passed over.

    Raises:
        DocumentError: bytes that are not UTF-8, quotes that do not close, a row that is too long, or one with another
            number of values than the first.
    """
    lines = _Lines(file, name)
    width = 0
    rows = _quoted(lines, dialect) if dialect.quotes else (split_row(line, dialect) for line in lines)
    for values in rows:
        row = lines.end_row(values)
        if not values or values == [""]:
            continue
        width = width or len(values)
        if len(values) != width:
            hint = "" if dialect.quotes else "; if values are in quotes, set quotes: true"
            raise DocumentError(
                f"{name}:{row.line}: expected {count(width, 'value')} as in the first line, got {len(values)}{hint}"
            )
        yield row


def split_row(text: str, dialect: Dialect) -> list[str]:
    """Return the values of a row."""
    if dialect.quotes:
        return next(csv.reader([text], delimiter=dialect.separator, strict=True))
    return text.removesuffix("\n").removesuffix("\r").split(dialect.separator)


def _quoted(lines: _Lines, dialect: Dialect) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines, delimiter=dialect.separator, strict=True)
    except csv.Error as error:
        raise DocumentError(
            f"{lines.name}:{lines.first}: expected values in closed quotes: {error}; correct the row, or set quotes: "
            "false if quotes belong to the values"
        ) from error


class _Lines:
    """The lines of a file as texts, with the place of the row that they belong to."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.name = name
        self.offset = self._end = file.tell()
        self.first = 1
        self._next = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        room = MOST_BYTES - (self._end - self.offset)
        line = self.file.readline(room + 1)
        if not line:
            raise StopIteration
        if len(line) > room:
            raise DocumentError(
                f"{self.name}:{self.first}: expected at most {MOST_BYTES:,} bytes in a row, got more; a quote that "
                "does not close makes one row of many lines"
            )
        self._end += len(line)
        self._next += 1
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise DocumentError(
                f"{self.name}:{self._next - 1}: expected UTF-8, got byte 0x{line[error.start]:02x} at position "
                f"{error.start}; convert the file, as in iconv -f LATIN1 -t UTF-8 FILE > NEW"
            ) from error

    def end_row(self, values: list[str]) -> TableRow:
        """Return the row of the lines since the last one."""
        row = TableRow(values, self.offset, self._end - self.offset, self.first)
        self.offset, self.first = self._end, self._next
        return row
