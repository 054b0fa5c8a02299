"""Records of a JSON or JSON Lines file, and the images that they name; errors name file and line."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from dreamkit.data.data_urls import data_url_problem, is_data_url, open_data_url
from dreamkit.data.image_files import open_picture
from dreamkit.data.text_files import HEAD, decode, open_regular, read_text, refuse_foreign
from dreamkit.data.unchanged import changed_error
from dreamkit.errors import DocumentError, describe_value, printable, surrogate_problem
from dreamkit.storage.json_files import MAX_DEPTH, bounded_integer, is_deep
from dreamkit.storage.paths import LONGEST_PATH

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Check = Callable[[Mapping[str, Any]], str | None]  # returns what is wrong with a record, or None
BLANK = " \t\r\n"


class Records:
    """The objects of a file: one array of them, or one object per line (blank lines are skipped).

    The first character shows which, whatever the name of the file. Every record is read and checked at the start. A
    file of lines does not stay in memory; a line that is no longer the one that was checked is refused.

    Attributes:
        sha256: hash of the text of all records, in hexadecimal.

    Raises:
        DocumentError: missing file, not a regular file, not UTF-8, invalid JSON, no records, or a record for which
            `check` returns a problem.
    """

    def __init__(self, path: Path, check: Check) -> None:
        self.path = path
        self.name = printable(path)
        self._lines = array("Q")  # the line of each record
        self._offsets = array("Q")  # its offset in bytes, in a file of lines
        self._checksums = array("I")  # of the line, in a file of lines
        self._array: list[dict[str, Any]] | None = None
        self._digest = hashlib.sha256()
        try:
            if self._first_character() == b"[":
                self._read_array(check)
            else:
                self._read_lines(check)
        except FileNotFoundError as error:
            raise DocumentError(f"{self.name}: no such file; correct the path of the data set") from error
        except OSError as error:
            raise DocumentError(f"{self.name}: cannot read the file: {error.strerror}") from error
        if not self._lines:
            raise DocumentError(f"{self.name}: no records; add some or correct the path of the data set")

        self.sha256 = self._digest.hexdigest()
        del self._digest  # no process can send it to another

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """Return the place `file:line` of record `index`, and the record.

        Raises:
            DocumentError: the file of lines changed since it was checked.
        """
        number = self._lines[index]
        where = f"{self.name}:{number}"
        if self._array is not None:
            return where, self._array[index]
        try:
            with open_regular(self.path) as file:
                file.seek(self._offsets[index])
                line = file.readline()
            is_same = _checksum(line) == self._checksums[index]
            reason = None if is_same else f"line {number} is another one now"
        except (OSError, DocumentError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if reason is not None:
            raise changed_error(self.path, reason)
        record: dict[str, Any] = _DECODER.decode(decode(line, where))
        return where, record

    def _first_character(self) -> bytes:
        with open_regular(self.path) as file:
            head = file.read(HEAD)
            refuse_foreign(head, self.name)
            head = head.removeprefix(codecs.BOM_UTF8)
            while head and not head.strip():
                head = file.read(HEAD)
            return head.lstrip()[:1]

    def _read_lines(self, check: Check) -> None:
        offset = 0
        with open_regular(self.path) as file:
            for number, line in enumerate(file, 1):
                where = f"{self.name}:{number}"
                text = decode(line, where)
                if text.strip():
                    try:
                        record = _DECODER.decode(text)
                    except (ValueError, RecursionError) as error:
                        raise DocumentError(f"{where}: {_json_problem(error)}") from error
                    self._accept(number, record, check)
                    self._digest.update(line.strip() + b"\n")
                    self._offsets.append(offset)
                    self._checksums.append(_checksum(line))
                offset += len(line)

    def _read_array(self, check: Check) -> None:
        text = read_text(self.path)
        self._digest.update(text.encode())
        self._array = []
        position, line, counted = text.find("[") + 1, 1, 0
        try:
            position = _skip_blank(text, position)
            while text[position : position + 1] != "]" or self._array:
                line += text.count("\n", counted, position)
                counted = position
                record, position = _DECODER.raw_decode(text, position)
                self._accept(line, record, check)
                self._array.append(record)
                position = _skip_blank(text, position)
                if text[position : position + 1] == "]":
                    break
                if text[position : position + 1] != ",":
                    raise json.JSONDecodeError("expected ',' or ']' after a record", text, position)
                position = _skip_blank(text, position + 1)
            position = _skip_blank(text, position + 1)
            if position < len(text):
                raise json.JSONDecodeError("expected nothing after the array", text, position)
        except DocumentError:
            raise
        except (ValueError, RecursionError) as error:
            number = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise DocumentError(f"{self.name}:{number}: {_json_problem(error)}") from error

    def _accept(self, line: int, record: Any, check: Check) -> None:
        where = f"{self.name}:{line}"
        if not isinstance(record, dict):
            raise DocumentError(f"{where}: expected a record {{...}}, got {describe_value(record)}")
        if is_deep(record, MAX_DEPTH):
            raise DocumentError(f"{where}: expected at most {MAX_DEPTH} nested values, got more")
        problem = check(record)
        if problem is not None:
            raise DocumentError(f"{where}: {problem}")
        self._lines.append(line)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    section = dict(pairs)
    if len(section) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key '{printable(twice)}' is set twice; remove one")
    return section


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_int=bounded_integer)


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = f"{error.msg} (column {error.colno})"
        return f"invalid JSON: {place}; expected one record per line, or one array of records"
    if isinstance(error, RecursionError):
        return f"invalid JSON: expected at most {MAX_DEPTH} nested values, got more"
    return f"invalid JSON: {error}"


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in BLANK:
        position += 1
    return position


def _checksum(line: bytes) -> int:
    return crc32(line.strip())


def string_problem(record: Mapping[str, Any], key: str) -> str | None:
    """Return why `record[key]` is not a non-blank string, or None."""
    if key not in record:
        keys = ", ".join(map(printable, record)) or "none"
        return f"missing '{key}': expected a string; keys of the record: {keys}"
    value = record[key]
    if isinstance(value, str) and value.strip():
        return None
    return f"{key}: expected a non-blank string, got {describe_value(value)}"


def text_problem(record: Mapping[str, Any], key: str) -> str | None:
    """Return why `record[key]` is not a non-blank text, or None."""
    problem = string_problem(record, key)
    if problem is None and (problem := surrogate_problem(record[key])):
        return f"{key}: {problem}"
    return problem


def paths_in(record: Mapping[str, Any], key: str) -> list[str]:
    """Return the paths under `key`, whose value `ImagePaths.list_problem` has checked."""
    value = record.get(key) or []
    return [value] if isinstance(value, str) else value


class ImagePaths:
    """The images that records name, by paths relative to `images` or else to the folder of the data file.

    Paths may lead anywhere, but not out of `images` where it is set. Links in that folder are followed.

    Raises:
        DocumentError: `images` is not a folder.
    """

    def __init__(self, file: Path, images: Path | None) -> None:
        self.folder = file.parent if images is None else images
        self.is_root = images is not None
        if images is not None and not os.path.isdir(images):
            raise DocumentError(f"{printable(images)}: no such folder; correct 'images' of the data set")

    def problem(self, path: str) -> str | None:
        """Return why the path of a record cannot name an image, or None. A data URL holds the image."""
        if is_data_url(path):
            return data_url_problem(path)
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError:
            encoded = b"\0"
        if b"\0" in encoded or len(encoded) > LONGEST_PATH:
            return f"expected a path, got {describe_value(printable(path))}, which no file can have"
        if self.is_root and not self._is_inside(path):
            return (
                f"expected a path inside 'images' ({printable(self.folder)}), got {describe_value(printable(path))}; "
                "correct it, or leave out 'images' and write paths from the folder of the data file"
            )
        return None

    def list_problem(self, record: Mapping[str, Any], key: str, *, or_path: bool = False) -> str | None:
        """Return why `record[key]` is not a list of paths (or, with `or_path`, a path), or None.

        A missing value, null and an empty string stand for no image.
        """
        value = record.get(key)
        paths = [value] if or_path and isinstance(value, str) else value
        if value is None or value == "":
            return None
        if not isinstance(paths, list):
            return f"{key}: expected a list of paths, got {describe_value(value)}"
        for number, item in enumerate(paths):
            if not isinstance(item, str) or not item:
                return f"{key}[{number}]: expected a path, got {describe_value(item)}"
        problem = next(filter(None, map(self.problem, paths)), None)
        return None if problem is None else f"{key}: {problem}"

    def open(self, path: str, where: str) -> Picture:
        """Open the image of a record at `where`; errors are those of `open_picture` or `open_data_url`."""
        if is_data_url(path):
            return open_data_url(path, where)
        return open_picture(self.folder / path, where)

    def _is_inside(self, path: str) -> bool:
        if not Path(path).is_absolute() and ".." not in Path(path).parts:
            return True
        # Resolved, because `link/..` is the folder above the link's target.
        target, root = map(os.path.realpath, (self.folder / path, self.folder))
        return Path(target).is_relative_to(root)
