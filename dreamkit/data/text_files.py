"""Text files of data sets: regular files in UTF-8, with or without a byte order mark; others are refused by name."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import BinaryIO

from dreamkit.data.document_reads import read_error
from dreamkit.data.unchanged import FileStatus, unchanged
from dreamkit.errors import DocumentError, printable
from dreamkit.storage.paths import irregular_kind

# The first bytes of formats that are often taken for text, with what makes text of them.
FOREIGN = {
    b"\x1f\x8b": ("a gzip file", "unpack it with gunzip"),
    b"BZh91AY&SY": ("a bzip2 file", "unpack it with bunzip2"),
    b"\xfd7zXZ\x00": ("an xz file", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "unpack it with unzstd"),
    b"PK\x03\x04": ("a zip file", "unpack it with unzip"),
    b"PAR1\x15": ("a Parquet file", "write its rows as JSON Lines"),
    b"ARROW1\x00": ("an Arrow file", "write its rows as JSON Lines"),
    b"SQLite format 3\x00": ("an SQLite file", "write its rows as JSON Lines"),
}
HEAD = 512  # bytes that show the format


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes.

    Raises:
        DocumentError: the path is a folder, a named pipe, a device or a socket.
        OSError: the file is missing or cannot be opened.
    """
    kind = irregular_kind(path)
    if kind is not None:
        raise DocumentError(f"{printable(path)}: expected a regular file, got {kind}")
    return path.open("rb")


def refuse_foreign(head: bytes, where: str) -> None:
    """Raise a DocumentError if the first bytes of a file are those of a packed or binary format or of UTF-16."""
    for magic, (kind, fix) in FOREIGN.items():
        if head.startswith(magic):
            raise DocumentError(f"{where}: expected text, got {kind}; {fix}")
    encoding = json.detect_encoding(head)
    if not encoding.startswith("utf-8"):
        name = encoding.upper()
        raise DocumentError(
            f"{where}: expected UTF-8, got {name}; convert it, as in iconv -f {name} -t UTF-8 FILE > NEW"
        )


def decode(data: bytes, where: str) -> str:
    """Return UTF-8 bytes as text, without a leading byte order mark.

    Raises:
        DocumentError: other bytes; the message starts with `where`.
    """
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DocumentError(
            f"{where}: expected UTF-8, got byte 0x{byte:02x} at position {error.start}; convert it from its encoding, "
            "as in iconv -f LATIN1 -t UTF-8 FILE > NEW"
        ) from error


def read_text(path: Path, before: FileStatus | None = None) -> str:
    """Read a UTF-8 file, with `\\n` as the end of each line.

    Raises:
        DocumentError: missing, not a regular file or not UTF-8.
        StorageError: it cannot be read, changes meanwhile, or changed since its status was `before`.
    """
    where = printable(path)
    try:
        with unchanged(path, before), open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise read_error(f"{where}: cannot read the file: {error.strerror}", error) from error
    refuse_foreign(data[:HEAD], where)
    return decode(data, where).replace("\r\n", "\n").replace("\r", "\n")
