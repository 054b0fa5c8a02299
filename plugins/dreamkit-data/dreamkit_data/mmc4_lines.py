"""MMC4's documents in JSON Lines as released, plain or packed, beside a folder of images."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import time
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from dreamkit import DocumentError, describe_error, excerpt, indexed, printable
from dreamkit_data.left_out import LeftOut
from dreamkit_data.member_records import parsed_record
from dreamkit_data.mmc4_records import Selection, record_problem
from dreamkit_data.spans import OpenFiles, Span, changed_error
from dreamkit_data.stored_images import image_paths

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES: Final = (".jsonl", ".jsonl.zip", ".jsonl.gz")
PACKED: Final = (".zip", ".gz")
VERSION: Final = 1  # of the index
ROW: Final = np.dtype([("start", "<u8"), ("size", "<u4"), ("line", "<u4")])  # of a document
# Of a packed file, the index has the documents: their rows, then their texts, as the bytes of one array.
BYTE: Final = np.dtype([("byte", "u1")])
READ_KEYS: Final = ("text_list", "image_info")  # of a record
MOST_LINE: Final = 2**26  # bytes
MOST_PACKED: Final = 2**31  # bytes of the records of a packed file


class LineDocuments:
    """Records in lines, with their images in a folder. An image that is not there is left out of its document.

    Raises:
        DocumentError: no folder of images, or a file or record that cannot be read.
    """

    def __init__(
        self, files: Sequence[Path], selection: Selection, images: Path | None, index: Path | None
    ) -> None:
        self.files = files
        self.selection = selection
        self.images = images
        for file in files:
            image_folder(file, images)
        self._indexes = indexed(
            files,
            partial(_index, selection, images),
            kind="mmc4 lines",
            version=VERSION,
            settings={**asdict(selection), "images": None if images is None else os.path.abspath(images)},
            folder=index,
        )
        self.facts = self._indexes.facts
        self._ends = np.cumsum([facts["documents"] for facts in self.facts])
        self._open = OpenFiles()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any], dict[int, Picture]]:
        """Return the place of a document, its record, and its images by their numbers in `image_info`.

        Raises:
            DocumentError: an image cannot be read.
            StorageError: the file is gone, cannot be read, or changed since it was indexed.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected a document from 0 to {len(self) - 1}, got {index}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        file, rows = self.files[number], self._indexes[number]
        index -= int(self._ends[number]) - self.facts[number]["documents"]
        if rows.dtype == BYTE:
            content = rows.view(np.uint8)
            row = content[ROW.itemsize * index :][: ROW.itemsize].view(ROW)[0]
            data = content[int(row["start"]) :][: int(row["size"])].tobytes()
        elif rows.dtype != ROW:
            raise changed_error(file)
        else:
            row = rows[index]
            data = self._open.read(Span(file, int(row["start"]), int(row["size"])))
        where = f"{printable(file)}:{row['line']}"
        record = parsed_record(data)
        if record is None or record_problem(record) is not None:
            raise changed_error(file)
        folder = image_folder(file, self.images)
        names = {
            image: record["image_info"][image]["image_name"]
            for image in self.selection.numbers(record, partial(_exists, folder))
        }
        if not names:
            raise DocumentError(
                f"{where}: expected an image in {printable(folder)}, got none of the document's"
            )
        paths = image_paths(file, folder)
        return where, record, {image: paths.open(name, where) for image, name in names.items()}

    def names_hash(self) -> str:
        """Return a hash of the name and the number of documents of each file, in order."""
        digest = hashlib.sha256()
        for file, facts in zip(self.files, self.facts, strict=True):
            digest.update(f"{facts['documents']} {file.name}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:32]


@lru_cache(1000)
def image_folder(file: Path, images: Path | None) -> Path:
    """Return the folder of a file's images: `images`, or else the one that MMC4's script of downloads fills.

    For `NAME.jsonl` and `NAME.jsonl.zip`, that is `NAME_images` or `NAME.jsonl_images` beside it. Else `images` is.

    Raises:
        DocumentError: there is no such folder.
    """
    name = file.name
    for suffix in (*PACKED, ".jsonl"):
        name = name.removesuffix(suffix)
    beside = [file.parent / each for each in (f"{name}_images", f"{name}.jsonl_images", "images")]
    for folder in [images] if images is not None else beside:
        if os.path.isdir(folder):
            return folder
    if images is not None:
        raise DocumentError(f"{printable(images)}: no such folder; correct 'images' of the data set")
    raise DocumentError(
        f"{printable(file)}: expected a folder of images, got none called {printable(beside[0].name)} or images beside "
        "the file; download the images, or set 'images' of the data set"
    )


def _index(selection: Selection, images: Path | None, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the places of a file's documents, and facts: their number, and those that are left out."""
    folder = image_folder(path, images)
    is_packed = path.suffix in PACKED
    starts, sizes, lines = array("Q"), array("L"), array("L")
    texts: list[bytes] = []
    position = 0
    left_out, begin = LeftOut(), time.perf_counter()
    for number, start, line in _lines(path):
        where = f"{printable(path)}:{number}"
        record = parsed_record(line)
        problem = _line_problem(line) if record is None else record_problem(record)
        if record is None or problem is not None:
            raise DocumentError(f"{where}: {problem}; correct or remove the line")
        if not _has_images(record, selection, folder, left_out, f"{path.name}:{number}"):
            continue
        if is_packed:
            line = json.dumps({key: record[key] for key in READ_KEYS}, ensure_ascii=False).encode()
            texts.append(line)
            start = position
            position += len(line)
            if position > MOST_PACKED:
                raise DocumentError(
                    f"{printable(path)}: expected at most {MOST_PACKED:,} bytes of packed records, got more; unpack it"
                )
        starts.append(start)
        sizes.append(len(line))
        lines.append(number)
    rows = np.empty(len(starts), ROW)
    rows["start"], rows["size"], rows["line"] = starts, sizes, lines
    size = os.path.getsize(path)
    cost = {
        "seconds": time.perf_counter() - begin,
        "reads": -(-size // io.DEFAULT_BUFFER_SIZE),
        "bytes": size,
    }
    facts = {"documents": len(rows), "cost": cost, **left_out.facts()}
    if not is_packed:
        return rows, facts
    rows["start"] += rows.nbytes
    return np.frombuffer(b"".join([rows.tobytes(), *texts]), BYTE), facts


def _has_images(
    record: Mapping[str, Any], selection: Selection, folder: Path, left_out: LeftOut, name: str
) -> bool:
    """Return True if a document has images; count what is missing."""
    for info in record["image_info"]:
        if not _exists(folder, info["image_name"]):
            left_out.add("not in its folder", name, "image")
    if selection.numbers(record, partial(_exists, folder)):
        return True
    left_out.add("without an image", name, "document")
    return False


def _exists(folder: Path, name: str) -> bool:
    path = os.path.join(folder, name)
    if os.path.islink(path):
        raise DocumentError(f"{printable(path)}: expected an image, got a link; copy the image")
    return os.path.isfile(path)


def _line_problem(line: bytes) -> str:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return f"expected one JSON object, got {describe_error(error)}"
    return f"expected one JSON object, got '{excerpt(line.decode())}'"


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and content of each line that is not blank."""
    name = printable(path)
    try:
        with _opened(path, name) as file:
            number = start = 0
            while line := file.readline(MOST_LINE + 1):
                number += 1
                if len(line) > MOST_LINE:
                    raise DocumentError(
                        f"{name}:{number}: expected a line of at most {MOST_LINE:,} bytes, got more"
                    )
                if content := line.strip():
                    yield number, start + len(line) - len(line.lstrip()), content
                start += len(line)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError) as error:
        raise DocumentError(
            f"{name}: cannot unpack the file: {describe_error(error)}; download it again"
        ) from error


@contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open the lines of a plain or packed file."""
    if not path.is_file():  # to open a named pipe could wait forever
        raise DocumentError(f"{name}: expected a regular file")
    if path.suffix == ".gz":
        with gzip.open(path) as packed:
            yield packed
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if len(members) != 1 or members[0].flag_bits & 1:
                raise DocumentError(
                    f"{name}: expected one file in the archive without a password, got "
                    f"{len(members) if len(members) != 1 else 'one with a password'}; unpack it with unzip"
                )
            with archive.open(members[0]) as member:
                yield member
    else:
        with path.open("rb") as file:
            yield file
