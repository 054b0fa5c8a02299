"""MMC4's documents in JSON Lines as released, plain or packed, or in a JSON array, beside a folder of images."""

from __future__ import annotations

import io
import json
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dreamkit import DocumentError, Location, Url, describe_error, excerpt, indexed, printable
from dreamkit_data.bucket_reads import BLOCK
from dreamkit_data.buckets import STATUS_REQUESTS, is_remote, statuses
from dreamkit_data.left_out import LeftOut
from dreamkit_data.member_records import parsed_record
from dreamkit_data.mmc4_files import IN_ARRAY, MOST_STORED, PACKED, stored_records
from dreamkit_data.mmc4_images import image_folder, lookup, read_images
from dreamkit_data.mmc4_records import Selection, record_problem, with_remedy
from dreamkit_data.spans import OpenFiles, Span, changed_error, hash_names

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES: Final = (".jsonl", *(f".jsonl{suffix}" for suffix in PACKED))
VERSION: Final = 1  # of the index
ROW: Final = np.dtype([("start", "<u8"), ("size", "<u4"), ("number", "<u4")])  # of a document
# Of a packed file or an array, the index has the documents: their rows, then their texts, as the bytes of one array.
BYTE: Final = np.dtype([("byte", "u1")])
READ_KEYS: Final = ("text_list", "image_info", "instruction")  # of a record


class LineDocuments:
    """Records in lines, with their images in a folder. An image that is not there is left out of its document.

    Raises:
        DocumentError: no folder of images, or a file or record that cannot be read.
    """

    def __init__(
        self,
        files: Sequence[Location],
        selection: Selection,
        images: Location | None,
        index: Path | None,
    ) -> None:
        self.files = files
        self.selection = selection
        self.images = images
        local = [file for file in files if not is_remote(file)]
        for file in local:
            image_folder(file, images)
        settings: dict[str, Any] = {**asdict(selection), "images": _settings_name(images)}
        beside = None if images is not None and is_remote(images) else partial(_beside, images)
        if images is not None and beside is not None and len(local) < len(files):
            settings["images time"] = os.stat(image_folder(files[0], images)).st_mtime_ns
        self._indexes = indexed(
            files,
            partial(_index, selection, images),
            kind="mmc4 lines",
            version=VERSION,
            settings=settings,
            folder=index,
            beside=beside,
            statuses=statuses,
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
        file, rows, facts = self.files[number], self._indexes[number], self.facts[number]
        index -= int(self._ends[number]) - facts["documents"]
        if rows.dtype == BYTE:
            content = rows.view(np.uint8)
            row = content[ROW.itemsize * index :][: ROW.itemsize].view(ROW)[0]
            data = content[int(row["start"]) :][: int(row["size"])].tobytes()
        elif rows.dtype != ROW:
            raise changed_error(file)
        else:
            row = rows[index]
            status = self._indexes.statuses[number]
            data = self._open.read(Span(file, int(row["start"]), int(row["size"]), status))
        where = record_name(printable(file), int(row["number"]), in_array=facts["is_array"])
        record = parsed_record(data)
        if record is None or record_problem(record) is not None:
            raise changed_error(file)
        folder = Url(facts["folder"]) if "folder" in facts else image_folder(file, self.images)
        pictures = read_images(folder, record, self.selection, file, where)
        if not pictures:
            raise DocumentError(
                f"{where}: expected an image in {printable(folder)}, got none of the document's"
            )
        return where, record, pictures

    def names_hash(self) -> str:
        """Return a hash of the name and the number of documents of each file, in order."""
        return hash_names(self.files, (facts["documents"] for facts in self.facts))


def _settings_name(images: Location | None) -> str | None:
    return None if images is None else str(images) if is_remote(images) else os.path.abspath(images)


def _beside(images: Location | None, file: Path) -> Path:
    """Return the folder of the images of a local file, whose change is noticed."""
    return Path(image_folder(file, images))


def _index(
    selection: Selection, images: Location | None, path: Location
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the places of a file's documents, and facts: their number, and those that are left out."""
    folder = image_folder(path, images)
    exists = lookup(folder)
    starts, sizes, numbers = array("Q"), array("L"), array("L")
    texts: list[bytes] = []
    position = 0
    in_array = False
    left_out = LeftOut()
    for number, start, content in stored_records(path):
        in_array = start == IN_ARRAY
        name = record_name(path.name, number, in_array=in_array)
        record = parsed_record(content)
        problem = _line_problem(content) if record is None else record_problem(record)
        if record is None or problem is not None:
            assert problem is not None, "a line that is no record has a problem"
            where = record_name(printable(path), number, in_array=in_array)
            raise DocumentError(f"{where}: {with_remedy(problem, 'record')}")
        if not _has_images(record, selection, exists, left_out, name):
            continue
        if start < 0:
            content = json.dumps(
                {key: record[key] for key in READ_KEYS if key in record}, ensure_ascii=False
            ).encode()
            texts.append(content)
            start = position
            position += len(content)
            if position > MOST_STORED:
                raise DocumentError(
                    f"{printable(path)}: expected at most {MOST_STORED:,} bytes of records, got more; unpack the file, "
                    "and write it as JSON Lines"
                )
        starts.append(start)
        sizes.append(len(content))
        numbers.append(number)
    rows = np.empty(len(starts), ROW)
    rows["start"], rows["size"], rows["number"] = starts, sizes, numbers
    size = statuses([path])[0].size if is_remote(path) else os.path.getsize(path)
    reads = -(-size // BLOCK) + STATUS_REQUESTS if is_remote(path) else -(-size // io.DEFAULT_BUFFER_SIZE)
    cost = {"reads": reads, "bytes": size, "documents": len(rows)}
    facts = {"documents": len(rows), "is_array": in_array, "cost": cost, **left_out.facts()}
    if is_remote(folder):
        facts["folder"] = folder  # it is not looked up again
    if not texts:
        return rows, facts
    rows["start"] += rows.nbytes
    return np.frombuffer(b"".join([rows.tobytes(), *texts]), BYTE), facts


def record_name(file: str, number: int, *, in_array: bool) -> str:
    """Return the name of a record by its line, or by its number in an array."""
    return f"{file}: record {number}" if in_array else f"{file}:{number}"


def _has_images(
    record: Mapping[str, Any],
    selection: Selection,
    exists: Callable[[str], bool],
    left_out: LeftOut,
    name: str,
) -> bool:
    """Return True if a document has images; count what is missing."""
    for info in record["image_info"]:
        if not exists(info["image_name"]):
            left_out.add("not in its folder", f"{name}: {info['image_name']}", "image")
    if selection.numbers(record, exists):
        return True
    left_out.add(selection.empty_reason(record, exists), name, "document")
    return False


def _line_problem(line: bytes) -> str:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return f"expected one JSON object, got {describe_error(error)}"
    return f"expected one JSON object, got '{excerpt(line.decode())}'"
