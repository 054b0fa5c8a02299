"""Records of a JSON or JSON Lines file, and the pictures they name; whatever is wrong is said with file and line."""

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

Check = Callable[[Mapping[str, Any]], str | None]


class Records:
    """The objects of a `.json` file (one array) or of any other (one object a line; blank lines are allowed).

    Every record is read and checked once, at the start; a file of lines is not kept in memory. `check` says what is
    wrong with a record, or None.

    Raises:
        DocumentError: no such file, bad JSON, no records, or a record that `check` refuses.
    """

    def __init__(self, path: Path, check: Check) -> None:
        self.path = path
        self._lines = array("Q")  # the line of each record
        self._offsets = array("Q")  # where it begins, in bytes, in a file of lines
        self._array: list[dict[str, Any]] | None = None
        if not path.is_file():
            raise DocumentError(f"{path}: there is no such file; correct the path of the data set")
        if path.suffix == ".json":
            self._read_array(check)
        else:
            self._read_lines(check)
        if not self._lines:
            raise DocumentError(f"{path}: holds no records")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """Where record `index` is (`file:line`), and the record."""
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
                        raise DocumentError(f"{self.path}:{number}: not JSON: {error}") from error
                    self._accept(number, record, check)
                    self._offsets.append(offset)
                offset += len(line)

    def _read_array(self, check: Check) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise DocumentError(f"{self.path}:{error.lineno}: not JSON: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise DocumentError(f"{self.path}: not UTF-8: {error}") from error
        if not isinstance(records, list):
            raise DocumentError(
                f"{self.path}:1: {type(records).__name__} found, but an array of records is wanted"
            )
        # Walks over the array once more, item by item, only to learn on which line each begins.
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
            raise DocumentError(
                f"{self.path}:{line}: {type(record).__name__} found, but a record {{...}} is wanted"
            )
        wrong = check(record)
        if wrong is not None:
            raise DocumentError(f"{self.path}:{line}: {wrong}")
        self._lines.append(line)


def wrong_text(record: Mapping[str, Any], key: str) -> str | None:
    """What is wrong with a record's text under `key`, or None."""
    value = record.get(key)
    if isinstance(value, str) and value.strip():
        return None
    found = "is missing" if key not in record else f"is {value!r}"
    return f"'{key}' {found}, but text is wanted (its keys: {', '.join(record) or 'none'})"


def wrong_texts(record: Mapping[str, Any], key: str) -> str | None:
    """What is wrong with a record's list of texts under `key`, or None; no list at all is an empty one."""
    value = record.get(key, [])
    if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
        return None
    return f"'{key}' is {value!r}, but a list of paths is wanted"


def open_picture(path: Path, where: str) -> Picture:
    """The picture in a file, read completely.

    Raises:
        DocumentError: it is missing, or cannot be read; `where` says who names it.
    """
    try:
        with PIL.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise DocumentError(f"{where}: there is no image {path}") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        PIL.DecompressionBombError,
    ) as error:  # how Pillow says it is damaged
        raise DocumentError(f"{where}: the image {path} cannot be read: {error}") from error
