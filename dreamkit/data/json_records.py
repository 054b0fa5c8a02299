"""The records in a file of JSON: where each one is, and what is wrong with one."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from struct import Struct
from typing import Any, Final
from zlib import crc32

import numpy as np

from dreamkit.data.text_files import HEAD, decode, open_regular, refuse_foreign
from dreamkit.data.unchanged import unchanged
from dreamkit.errors import DocumentError, describe_value, printable
from dreamkit.progress.bars import Bar
from dreamkit.storage.json_files import MAX_DEPTH, bounded_integer, is_deep

Check = Callable[[Mapping[str, Any]], str | None]  # returns what is wrong with a record, or None
# A record: offset, line, number of bytes, and their checksum.
ROW: Final = np.dtype([("start", "<u8"), ("line", "<u8"), ("size", "<u4"), ("crc32", "<u4")])
LONGEST_LINE: Final = 2**28  # bytes
_PACK: Final = Struct("<QQII").pack
_BLANK: Final = " \t\r\n"
_SHOWN: Final = 2**26  # bytes of a file whose reading takes seconds
_STEP: Final = 4096  # lines between two moves of the bar
_MEGABYTE: Final = 10**6


def index_records(path: Path, name: str, check: Check) -> tuple[np.ndarray, dict[str, str]]:
    """Read and check the records of a file, called `name` in messages: one array of them, or one in each line.

    The first character shows which. Blank lines are skipped.

    Returns:
        An array of `ROW`, with a row for each record; and `sha256`, the hash of all records, in hexadecimal.

    Raises:
        DocumentError: not a regular file, not UTF-8, invalid JSON, no records, or one in which `check` sees a problem.
        OSError: the file cannot be read.
    """
    digest, rows = hashlib.sha256(), bytearray()
    read = _array_places if _first_character(path, name) == b"[" else _line_places
    for start, line, data in read(path, name, check, digest):
        rows += _PACK(start, line, len(data), crc32(data))
    if not rows:
        raise DocumentError(f"{name}: no records; add some or correct the path of the data set")
    return np.frombuffer(rows, ROW), {"sha256": digest.hexdigest()}


def parse_record(text: str, where: str, check: Check) -> dict[str, Any]:
    """Return the record in a text.

    Raises:
        DocumentError: invalid JSON, another value, or `check` returns a problem. The message starts with `where`.
    """
    try:
        record = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where}: {_json_problem(error)}") from error
    return _checked(record, where, check)


def _first_character(path: Path, name: str) -> bytes:
    with open_regular(path) as file:
        head = file.read(HEAD)
        refuse_foreign(head, name)
        head = head.removeprefix(codecs.BOM_UTF8)
        while head and not head.strip():
            head = file.read(HEAD)
        return head.lstrip()[:1]


def _line_places(
    path: Path, name: str, check: Check, digest: hashlib._Hash
) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, line and bytes of each record of a file of lines."""
    offset, number, size = 0, 0, path.stat().st_size
    bar = Bar("reading records", "MB") if size >= _SHOWN else None
    with open_regular(path) as file, bar or nullcontext():
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{name}:{number}"
            if len(line) > LONGEST_LINE:
                raise DocumentError(f"{where}: expected a line of at most {LONGEST_LINE:,} bytes, got more")
            text = decode(line, where)
            if text.strip():
                parse_record(text, where, check)
                data = line.strip()
                digest.update(data + b"\n")
                yield offset + len(line) - len(line.lstrip()), number, data
            offset += len(line)
            if bar is not None and number % _STEP == 1:
                bar.move(offset // _MEGABYTE, size // _MEGABYTE)


def _array_places(
    path: Path, name: str, check: Check, digest: hashlib._Hash
) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, line and bytes of each record of a file with an array, which is in memory meanwhile."""
    with unchanged(path), open_regular(path) as file:
        content = file.read()
    text = decode(content, name)
    mark = len(codecs.BOM_UTF8) * content.startswith(codecs.BOM_UTF8)
    del content
    digest.update(text.replace("\r\n", "\n").replace("\r", "\n").encode())
    start, number = text.find("[") + 1, 0
    line, counted, offset, encoded = 1, 0, mark, 0
    try:
        start = _skip_blank(text, start)
        while text[start : start + 1] != "]" or number:
            line += _line_breaks(text[counted:start])
            offset += len(text[encoded:start].encode())
            record, end = _DECODER.raw_decode(text, start)
            _checked(record, f"{name}:{line}", check)
            data = text[start:end].encode()
            yield offset, line, data
            number, counted = number + 1, start
            offset, encoded = offset + len(data), end
            start = _skip_blank(text, end)
            if text[start : start + 1] == "]":
                break
            if text[start : start + 1] != ",":
                raise json.JSONDecodeError("expected ',' or ']' after a record", text, start)
            start = _skip_blank(text, start + 1)
        start = _skip_blank(text, start + 1)
        if start < len(text):
            raise json.JSONDecodeError("expected nothing after the array", text, start)
    except DocumentError:
        raise
    except (ValueError, RecursionError) as error:
        place = error.pos if isinstance(error, json.JSONDecodeError) else start
        raise DocumentError(f"{name}:{1 + _line_breaks(text[:place])}: {_json_problem(error)}") from error


def _checked(record: Any, where: str, check: Check) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DocumentError(f"{where}: expected a record {{...}}, got {describe_value(record)}")
    if is_deep(record, MAX_DEPTH):
        raise DocumentError(f"{where}: expected at most {MAX_DEPTH} nested values, got more")
    problem = check(record)
    if problem is not None:
        raise DocumentError(f"{where}: {problem}")
    return record


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    section = dict(pairs)
    if len(section) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key '{printable(twice)}' is set twice; remove one")
    return section


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_int=bounded_integer)


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"{error.msg} (column {error.colno})"
        return f"invalid JSON: {place}; expected one record per line, or one array of records"
    if isinstance(error, RecursionError):
        return f"invalid JSON: expected at most {MAX_DEPTH} nested values, got more"
    return f"invalid JSON: {error}"


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _line_breaks(text: str) -> int:
    """Return the number of line breaks in a text: `\\n`, `\\r\\n` or `\\r`."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")
