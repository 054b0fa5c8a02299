"""The records in files of MMC4: JSON Lines, plain or packed, or a JSON array."""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from dreamkit import DocumentError, Location, describe_error, open_packed, printable, read_error
from dreamkit_data.bucket_reads import open_object
from dreamkit_data.buckets import is_remote

PACKED: Final = (".zip", ".gz", ".zst")
PACKED_LINE, IN_ARRAY = -1, -2  # offsets of records that are read from the index
DAMAGED: Final = (None, errno.EINVAL)  # numbers of OSErrors of libraries, and of places that no file has
MOST_LINE: Final = 2**26  # bytes
MOST_STORED: Final = 2**31  # bytes of a file's records in its index


def stored_records(path: Location) -> Iterator[tuple[int, int, bytes]]:
    """Yield each record that is not blank: its number from 1, its offset and its content.

    The number is that of its line, or that in an array. The offset is `PACKED_LINE` or `IN_ARRAY` if the file itself
    cannot be read there.

    Raises:
        DocumentError: the file is missing, damaged or too large.
        StorageError: the disk or network fails.
    """
    name = printable(path)
    try:
        with _opened(path, name) as file:
            if _is_array(path, file):
                yield from _array_records(file, name)
                return
            number = start = 0
            while line := file.readline(MOST_LINE + 1):
                number += 1
                if len(line) > MOST_LINE:
                    raise DocumentError(
                        f"{name}:{number}: expected a line of at most {MOST_LINE:,} bytes, got more"
                    )
                if content := line.strip():
                    blank = len(line) - len(line.lstrip())
                    yield number, PACKED_LINE if path.name.endswith(PACKED) else start + blank, content
                start += len(line)
    except DocumentError:
        raise
    except Exception as error:  # damaged archives raise any type of error
        if isinstance(error, OSError) and error.errno not in DAMAGED:
            raise read_error(f"{name}: cannot read the file: {error.strerror}", error) from error
        raise DocumentError(
            f"{name}: cannot unpack the file: {describe_error(error)}; download it again"
        ) from error


def _is_array(path: Location, file: IO[bytes]) -> bool:
    """Return True if a file is one array of records, as its first character shows; packed files have lines."""
    if path.name.endswith(PACKED):
        return False
    head = file.read(64)
    file.seek(0)
    return head.lstrip()[:2] in (b"[{", b"[", b"[\n", b"[\r", b"[ ")


def _array_records(file: IO[bytes], name: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield the records of an array, which is in memory meanwhile."""
    content = file.read(MOST_STORED + 1)
    if len(content) > MOST_STORED:
        raise DocumentError(
            f"{name}: expected an array of at most {MOST_STORED:,} bytes, got more; write it as JSON Lines"
        )
    try:
        items = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{name}: expected an array of records, got {describe_error(error)}") from error
    for number, item in enumerate(items, 1):
        yield number, IN_ARRAY, json.dumps(item).encode()


@contextmanager
def _opened(path: Location, name: str) -> Iterator[IO[bytes]]:
    """Open the lines of a plain or packed file."""
    if not is_remote(path) and not Path(path).is_file():  # to open a named pipe could wait forever
        raise DocumentError(f"{name}: expected a regular file")
    with open_object(path) if is_remote(path) else Path(path).open("rb") as file:
        if not path.name.endswith(".zip"):
            yield open_packed(file, path)
            return
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if len(members) != 1 or members[0].flag_bits & 1:
                raise DocumentError(
                    f"{name}: expected one file in the archive without a password, got "
                    f"{len(members) if len(members) != 1 else 'one with a password'}; unpack it with unzip"
                )
            with archive.open(members[0]) as member:
                yield member
