"""Records of a JSON or JSON Lines file, and the images that they name; errors name file and line."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as PIL

from dreamkit.errors import DocumentError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Check = Callable[[Mapping[str, Any]], str | None]  # returns what is wrong with a record, or None


class Records:
    """The objects of a `.json` file (one array) or of another file (one object per line; blank lines are skipped).

    Every record is read and checked at the start. A file of lines does not stay in memory.

    Raises:
        DocumentError: missing file, invalid JSON, no records, or a record for which `check` returns a problem.
    """

    def __init__(self, path: Path, check: Check) -> None:
        self.path = path
        self._lines = array("Q")  # the line of each record
        self._offsets = array("Q")  # its offset in bytes, in a file of lines
        self._array: list[dict[str, Any]] | None = None
        if not path.is_file():
            raise DocumentError(f"{path}: no such file; correct the path of the data set")
        if path.suffix == ".json":
            self._read_array(check)
        else:
            self._read_lines(check)
        if not self._lines:
            raise DocumentError(f"{path}: no records; add some or correct the path of the data set")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """Return the place `file:line` of record `index`, and the record."""
        where = f"{self.path}:{self._lines[index]}"
        if self._array is not None:
            return where, self._array[index]
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return where, json.loads(file.readline())

    def _read_lines(self, check: Check) -> None:
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        record = json.loads(line)
                    except ValueError as error:
                        raise DocumentError(f"{self.path}:{number}: invalid JSON: {error}") from error
                    self._accept(number, record, check)
                    self._offsets.append(offset)
                offset += len(line)

    def _read_array(self, check: Check) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise DocumentError(f"{self.path}:{error.lineno}: invalid JSON: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise DocumentError(f"{self.path}: invalid UTF-8: {error}") from error
        if not isinstance(records, list):
            raise DocumentError(f"{self.path}:1: expected a list of records, got {type(records).__name__}")
        # Scans the array again, item by item, for the line of each record.
        scan = json.JSONDecoder().raw_decode
        position, line, counted = text.index("[") + 1, 1, 0
        for record in records:
            while text[position] in ", \t\r\n":
                position += 1
            line += text.count("\n", counted, position)
            counted = position
            self._accept(line, record, check)
            _, position = scan(text, position)
        self._array = records

    def _accept(self, line: int, record: Any, check: Check) -> None:
        if not isinstance(record, dict):
            raise DocumentError(f"{self.path}:{line}: expected a record {{...}}, got {type(record).__name__}")
        problem = check(record)
        if problem is not None:
            raise DocumentError(f"{self.path}:{line}: {problem}")
        self._lines.append(line)


def text_problem(record: Mapping[str, Any], key: str) -> str | None:
    """Return why `record[key]` is not a non-blank string, or None."""
    if key not in record:
        return f"missing '{key}': expected a string; keys of the record: {', '.join(record) or 'none'}"
    value = record[key]
    if isinstance(value, str) and value.strip():
        return None
    return f"{key}: expected a non-blank string, got {value!r}"


def paths_problem(record: Mapping[str, Any], key: str) -> str | None:
    """Return why `record[key]` is not a list of paths, or None; a missing list is an empty one."""
    value = record.get(key, [])
    if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
        return None
    return f"{key}: expected a list of paths, got {value!r}"


def open_picture(path: Path, where: str) -> Picture:
    """Read the image of a file completely, as a PIL image.

    Raises:
        DocumentError: the file is missing or cannot be read; the message starts with `where`, the place that names it.
    """
    try:
        with PIL.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise DocumentError(f"{where}: no such image: {path}") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        PIL.DecompressionBombError,
    ) as error:  # Pillow's errors of bad files
        raise DocumentError(f"{where}: cannot read the image {path}: {error}") from error
