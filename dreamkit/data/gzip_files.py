"""Packed files of records, which are unpacked once beside their index."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from rich.filesize import decimal

from dreamkit.data.index_files import atomic_file, remove_leftovers
from dreamkit.data.index_store import alone, folder_hint, index_folder, report
from dreamkit.data.unchanged import file_status, unchanged
from dreamkit.errors import DocumentError, OutputError, printable
from dreamkit.progress.bars import Bar
from dreamkit.storage.writing import writing

_BLOCK: Final = 2**20  # bytes of text
_SAMPLE: Final = 16  # blocks that show how much a file grows
_SPARED: Final = 10  # one part in so many of the free space stays free
_MEGABYTE: Final = 10**6


def unpacked(path: Path, index: Path | None) -> Path:
    """Return the file with the text of a gzip file, in the folder of its index. It is written once.

    The space that it needs is estimated from its start, printed, and compared with the free space. A bomb ends before
    the disk is full.

    Raises:
        DocumentError: not a gzip file, or a damaged one.
        OutputError: there is too little space, or the file cannot be written.
        OSError: the file cannot be read.
    """
    folder, name, status = index_folder(index), os.path.abspath(path), file_status(path)
    start = _hash(name)
    target = folder / f"{start}-{_hash(f'{status.size} {status.time}')}.txt"
    if target.exists():
        return target
    with folder_hint(index), alone(folder / f"{start}.lock"):
        if not target.exists():
            remove_leftovers(folder)
            with unchanged(path, status):
                _unpack(path, target)
            for older in folder.glob(f"{start}-*.txt"):
                if older != target:
                    with suppress(OSError):
                        older.unlink()
    return target


def _unpack(path: Path, target: Path) -> None:
    with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
        size, name = os.fstat(packed.fileno()).st_size, printable(path)
        blocks = [_next_block(file, name) for _ in range(_SAMPLE)]
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
            while blocks or (block := _next_block(file, name)):
                block = blocks.pop(0) if blocks else block
                written += len(block)
                if max(written, estimate) > most:
                    more = f"about {decimal(estimate)}" if written <= most else f"more than {decimal(most)}"
                    raise OutputError(
                        f"{name}: unpacked, it needs {more}, and {printable(target.parent)} has {decimal(free)} free; "
                        "free some space, or unpack it on another disk with gunzip"
                    )
                with writing(target):
                    out.write(block)
                if size > 64 * _MEGABYTE:
                    bar.move(packed.tell() // _MEGABYTE, size // _MEGABYTE)


def _next_block(file: BinaryIO | gzip.GzipFile, name: str) -> bytes:
    try:
        return file.read(_BLOCK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DocumentError(f"{name}: damaged gzip file: {error}; write or download it again") from error


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
