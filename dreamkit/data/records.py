"""Records of a JSON or JSON Lines file, and the images that they name; errors name file and line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import numpy as np

from dreamkit.data.data_urls import data_url_problem, is_data_url, open_data_url
from dreamkit.data.document_reads import opening_errors, raise_own
from dreamkit.data.image_files import open_picture
from dreamkit.data.index_store import indexed
from dreamkit.data.json_records import ROW, Check, index_records, parse_record
from dreamkit.data.range_reads import RangeReads
from dreamkit.data.text_files import decode, open_regular
from dreamkit.data.unchanged import changed_error
from dreamkit.data.unpacked_files import is_packed, unpacked
from dreamkit.errors import DocumentError, StorageError, describe_value, printable, surrogate_problem
from dreamkit.storage.paths import LONGEST_PATH

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SMALL: Final = 2**20  # bytes of a file that is read at each start
VERSION: Final = 1  # of the index


class Records:
    """The objects of a file: one array of them, or one object per line (blank lines are skipped).

    The first character shows which, whatever the name of the file. Every record is read and checked once; where it is
    stays in an index (`indexed`). No record stays in memory. A record that is no longer the one that was checked is
    refused. A file named `.gz` or `.zst` is unpacked beside its index.

    Args:
        check: returns what is wrong with a record, or None. It is called again when a record is read, so that no index
            is trusted.
        notes: returns lines about what `check` saw in all records.
        settings: all values that `check` depends on.
        index: folder of the index; None is the user's cache folder, and no index for small files.

    Attributes:
        sha256: hash of the text of all records, in hexadecimal.
        notes: the lines, each with the name of the file.

    Raises:
        DocumentError: missing file, not a regular file, not UTF-8, invalid JSON, no records, or a record for which
            `check` returns a problem.
        OutputError: the index or the unpacked file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        check: Check,
        *,
        notes: Callable[[], Iterable[str]] = tuple,
        settings: Mapping[str, Any] | None = None,
        index: Path | None = None,
    ) -> None:
        self.path = path
        self.name = printable(path)
        self._check = check
        self._rows: Sequence[np.ndarray]
        facts: Mapping[str, Any]
        with opening_errors(path):
            with open_regular(path):  # refuses others by their kind
                size = os.stat(path).st_size
            self._file = RangeReads(Path(unpacked(path, index)))
            build = partial(_index, name=self.name, text=self._file.path, check=check, notes=notes)
            if size < SMALL and index is None and not is_packed(path):
                rows, facts = build(path)
                self._rows = [rows]
            else:
                # Each release may check more than the one before.
                values = {"release": version("dreamkit-core"), **(settings or {})}
                indexes = indexed(
                    [path], build, kind="records", version=VERSION, settings=values, folder=index
                )
                self._rows, (facts,) = indexes, indexes.facts
        self.sha256 = str(facts.get("sha256"))
        lines = facts.get("notes")
        self.notes = [f"{self.name}: {line}" for line in lines] if isinstance(lines, list) else []
        self._count = len(self._rows[0]) if isinstance(self._rows, list) else int(self._rows.rows[0])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """Return the place `file:line` of record `index`, and the record.

        Raises:
            StorageError: the file changed since it was checked, or cannot be read.
        """
        rows = self._rows[0]
        if rows.dtype != ROW:
            raise StorageError(f"{self.name}: its index has other columns; remove it to compute it anew")
        start, number, size, checksum = rows[index].item()
        where = f"{self.name}:{number}"
        try:
            data = self._file.read(start, size)
        except (FileNotFoundError, NotADirectoryError, DocumentError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise changed_error(self._file.path, reason) from error
        except OSError as error:
            raise_own(error, f"{where}: cannot read the file")
            raise StorageError(f"{where}: cannot read the file: {error.strerror}") from error
        if crc32(data) != checksum:
            raise changed_error(self._file.path, f"line {number} is another one now")
        return where, parse_record(decode(data, where), where, self._check)


def check_settings(config: Any, *unused: str) -> dict[str, Any]:
    """Return the values of a data set's `config` that its check may depend on: all but its file and `unused`."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        name: os.path.abspath(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if name not in ("path", "index", *unused)
    } | {"reader": type(config).__name__}


def _index(
    path: Path, *, name: str, text: Path, check: Check, notes: Callable[[], Iterable[str]]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the index of the records at `path`, whose text is in the file `text`."""
    rows, facts = index_records(text, name, check)
    return rows, {**facts, "notes": list(notes())}


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
