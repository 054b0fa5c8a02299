"""Packed files of records, which are unpacked once beside their index."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Final, NamedTuple

from rich.filesize import decimal

from dreamkit.data.document_reads import opening_errors
from dreamkit.data.index_files import atomic_file, remove_leftovers
from dreamkit.data.index_store import alone, folder_hint, index_folder, report
from dreamkit.data.text_files import open_regular
from dreamkit.data.unchanged import FileStatus, file_status, unchanged
from dreamkit.errors import DocumentError, OutputError, printable
from dreamkit.progress.bars import Bar
from dreamkit.storage.urls import Location, Url
from dreamkit.storage.writing import writing

_BLOCK: Final = 2**20  # bytes of text
_SAMPLE: Final = 16  # blocks that show how much a file grows
_SPARED: Final = 10  # one part in so many of the free space stays free
_MEGABYTE: Final = 10**6


class _Format(NamedTuple):
    """A packed format.

    Attributes:
        name: name of the format.
        command: program that unpacks it.
        open: function that returns the text of a packed file. `name` of the file is for messages.
    """

    name: str
    command: str
    open: Callable[[BinaryIO, str], IO[bytes]]


def _open_gzip(file: BinaryIO, _: str) -> IO[bytes]:
    return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]


def _open_zstandard(file: BinaryIO, name: str) -> IO[bytes]:
    try:
        from dreamkit.data.zstandard_reader import ZstandardReader
    except ModuleNotFoundError as error:
        if error.name != "zstandard":
            raise
        raise DocumentError(
            f"{name}: to unpack it needs the package zstandard; run pip install dreamkit-data"
        ) from error
    return io.BufferedReader(ZstandardReader(file))


_FORMATS: Final[Mapping[str, _Format]] = {
    ".gz": _Format("gzip", "gunzip", _open_gzip),
    ".zst": _Format("Zstandard", "unzstd", _open_zstandard),
}


def is_packed(path: Location) -> bool:
    """Return True if the name of a file is that of one that `unpacked` unpacks: `.gz` or `.zst`."""
    return _suffix(path) in _FORMATS


def open_packed(file: BinaryIO, path: Location) -> IO[bytes]:
    """Return the text of an open file at `path`, which its name may show to be packed (`.gz`, `.zst`).

    A file with another name is returned as it is. `file` stays open when the text is closed. Reading the text raises
    an error of any type if the file is damaged or cut.

    Raises:
        DocumentError: the package that unpacks this format is missing.
    """
    return _FORMATS[_suffix(path)].open(file, printable(path)) if is_packed(path) else file


def unpacked(
    path: Path | Url,
    folder: Path | None = None,
    *,
    status: tuple[int, int] | None = None,
    open_object: Callable[[Url, tuple[int, int]], BinaryIO] | None = None,
) -> Path | Url:
    """Return the path of the text of a packed file (`.gz`, `.zst`), which is written once; that of others is their own.

    The text lies in `folder`, as the indexes of `indexed`. The space that it needs is estimated from its start,
    printed, and compared with the free space. A bomb ends before the disk is full.

    Args:
        path: the file, or an object in a bucket.
        folder: folder of the index; None is that in the user's cache folder.
        status: size and version of the object.
        open_object: function that opens an object for reading, in its status, and raises a `StorageError` if it has
            another one by now.

    Raises:
        DocumentError: missing, not a regular file, damaged, or the package that unpacks it is missing.
        OutputError: there is too little space, or the file cannot be written.
        StorageError: the file changes while it is read.
    """
    if not is_packed(path):
        return path
    if isinstance(path, Url):
        assert status is not None and open_object is not None, "of an object"
        opened = partial(open_object, path, status)
        return _unpacked(path, str(path), FileStatus(*status), folder, opened, nullcontext())
    with opening_errors(path):
        present = file_status(path)
        watched = unchanged(path, present)
        return _unpacked(path, os.path.abspath(path), present, folder, partial(open_regular, path), watched)


def _unpacked(
    path: Location,
    name: str,
    status: FileStatus,
    folder: Path | None,
    opened: Callable[[], BinaryIO],
    watched: AbstractContextManager[None],
) -> Path:
    """Return the text of a file called `name`, which `opened` opens, and `watched` compares with its status."""
    place, start = index_folder(folder), _hash(name)
    target = place / f"{start}-{_hash(f'{status.size} {status.time}')}.txt"
    if target.exists():
        return target
    with folder_hint(folder), alone(place / f"{start}.lock"):
        if not target.exists():
            remove_leftovers(place)
            with watched, opened() as packed:
                _unpack(packed, path, status.size, target)
            for older in place.glob(f"{start}-*.txt"):
                if older != target:
                    with suppress(OSError):
                        older.unlink()
    return target


def _unpack(packed: BinaryIO, path: Location, size: int, target: Path) -> None:
    form, name = _FORMATS[_suffix(path)], printable(path)
    with form.open(packed, name) as file:
        next_block = partial(_next_block, file, f"{name}: damaged {form.name} file")
        blocks = [next_block() for _ in range(_SAMPLE)]
        text = sum(map(len, blocks))
        estimate = text if not blocks[-1] else int(text * size / max(1, min(size, packed.tell())))
        free = shutil.disk_usage(target.parent).free
        most = free - free // _SPARED
        report(
            f"unpacking {name} ({decimal(size)}, about {decimal(estimate)} unpacked; {decimal(free)} free) into "
            f"{printable(target.parent)}"
        )
        with atomic_file(target) as out, Bar("unpacking", "MB") as bar:
            written = 0
            while blocks or (block := next_block()):
                block = blocks.pop(0) if blocks else block
                written += len(block)
                if max(written, estimate) > most:
                    more = f"about {decimal(estimate)}" if written <= most else f"more than {decimal(most)}"
                    raise OutputError(
                        f"{name}: unpacked, it needs {more}, and {printable(target.parent)} has {decimal(free)} free; "
                        f"free some space, or unpack it on another disk with {form.command}"
                    )
                with writing(target):
                    out.write(block)
                if size > 64 * _MEGABYTE:
                    bar.move(packed.tell() // _MEGABYTE, size // _MEGABYTE)


def _next_block(file: IO[bytes], problem: str) -> bytes:
    try:
        return file.read(_BLOCK)
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise DocumentError(f"{problem}: {error}; write or download it again") from error


def _suffix(path: Location) -> str:
    return Path(path.name).suffix.lower()


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
