"""Members of tar archives, from their headers alone: ustar, GNU's long names and pax.

Archives are untrusted. Names that lead out of the archive, links, devices, sparse files and damaged headers are
refused. The format is POSIX.1-2017, pax, "ustar Interchange Format", and GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from zlib import adler32

from dreamkit import DocumentError, count, describe_value, excerpt, printable

Read = Callable[[int, int], bytes]  # offset and size in bytes to the bytes, fewer at the end of the archive

BLOCK: Final = 512
MOST_EXTENDED: Final = 2**20  # bytes of a long name or of pax records
AFTER_END: Final = 2**16  # bytes that must be zero after the mark of the end; GNU tar pads to 10,240
_ZEROS: Final = bytes(BLOCK)
_REGULAR: Final = b"0\0007"  # 7: contiguous, which is read as a regular file
_FOLDER: Final = b"5"
_SPECIAL: Final = {
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
}


class Member(NamedTuple):
    """A regular file of an archive.

    Attributes:
        name: path in the archive, without a leading `./`.
        head: offset of the first block of its headers, in bytes.
        start: offset of its content.
        size: bytes of its content.
    """

    name: str
    head: int
    start: int
    size: int


def members(read: Read, start: int, end: int, where: str, *, whole: bool = True) -> Iterator[Member]:
    """Yield the regular files between two offsets of an archive; folders are passed over.

    Args:
        read: reader of the archive, asked for headers only.
        start: offset of the first header.
        end: offset after the last block; the size of the archive if it is `whole`.
        where: name of the archive in messages, printable.
        whole: the archive must have the mark of its end.

    Raises:
        DocumentError: a damaged or cut archive, or a member that is refused.
    """
    position = head = start
    long_name: str | None = None
    pax: dict[bytes, bytes] = {}
    while position < end or whole:
        block = read(position, BLOCK)
        if len(block) < BLOCK:
            raise DocumentError(f"{where}: {_cut(position, end, bool(block))}")
        if block == _ZEROS:
            if any(read(position, AFTER_END)):
                raise DocumentError(
                    f"{where}: expected nothing after the archive's end at byte {position:,}, got more bytes; if "
                    "archives were joined with cat, separate them or join them with tar --concatenate"
                )
            return
        kind, name, size = _header(block, where, position)
        position += BLOCK
        if kind in b"xXgLK":
            if size > MOST_EXTENDED:
                raise DocumentError(
                    f"{where}: byte {position - BLOCK:,}: expected at most {MOST_EXTENDED:,} bytes of names, "
                    f"got {size:,}; write the archive anew"
                )
            content = read(position, size)
            if len(content) < size:
                raise DocumentError(f"{where}: {_cut(position, end, True)}")
            if kind == b"L":
                long_name = _decoded(content)
            elif kind != b"K":
                records = _pax_records(content, f"{where}: byte {position:,}")
                if kind == b"g" and records.keys() & {b"path", b"size"}:
                    raise DocumentError(
                        f"{where}: byte {position:,}: expected names and sizes for one member each, got one for all "
                        "members (a global pax header); write the archive anew"
                    )
                pax = records if kind != b"g" else pax
            position += -(-size // BLOCK) * BLOCK
            continue
        if kind == b"\0" and name.endswith("/"):  # the first tars mark folders by their names
            kind = _FOLDER
        name = _decoded(pax[b"path"]) if b"path" in pax else long_name or name
        if b"size" in pax:
            size = _decimal(pax[b"size"], f"{where}: byte {position:,}")
        if any(key.startswith(b"GNU.sparse.") for key in pax):
            kind = b"S"
        name = name.removeprefix("./")
        if (problem := _problem(kind, name)) is not None:
            raise DocumentError(f"{where}!{printable(name)}: {problem}; write the archive without it")
        if kind in _REGULAR:
            if position + size > end:
                raise DocumentError(
                    f"{where}: {_cut(position, end, True)}: '{excerpt(name)}' has {count(f'{size:,}', 'byte')}"
                )
            yield Member(name, head, position, size)
            position += -(-size // BLOCK) * BLOCK
        head, long_name, pax = position, None, {}


def _header(block: bytes, where: str, position: int) -> tuple[bytes, str, int]:
    """Return the kind, name and size in the header at `position`."""
    checksum = _number(block[148:156], where, position)
    unsigned = _sum(block[:256]) + _sum(block[256:]) - sum(block[148:156]) + 8 * ord(" ")
    if checksum != unsigned:
        signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])  # of early tars
        if checksum != signed:
            raise DocumentError(
                f"{where}: byte {position:,}: expected the header of a tar's member, got other bytes; the archive is "
                "damaged or is no tar: write or download it again"
            )
    name = _decoded(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_decoded(block[345:500])}/{name}"
    return block[156:157], name, _number(block[124:136], where, position)


def _sum(half: bytes) -> int:
    """Return the sum of at most 256 bytes: the low half of Adler-32 is 1 + the sum, modulo 65,521. `sum` is slower."""
    return (adler32(half) & 0xFFFF) - 1


def _number(field: bytes, where: str, position: int) -> int:
    """Return the number in a field of a header: octal digits, or a large one in base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip() or b"0"
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise DocumentError(
        f"{where}: byte {position:,}: expected octal digits in a tar's header, got '{excerpt(_decoded(field))}'; the "
        "archive is damaged or is no tar: write or download it again"
    )


def _decimal(digits: bytes, where: str) -> int:
    if digits.isdigit() and len(digits) < 20:
        return int(digits)
    raise DocumentError(
        f"{where}: expected the size of a member, got '{excerpt(_decoded(digits))}'; write the archive anew"
    )


def _decoded(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax_records(content: bytes, where: str) -> dict[bytes, bytes]:
    """Return the values of pax records, `LENGTH KEY=VALUE\\n` each, by their keys."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(content) and content[position]:
        digits = content[position : position + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = content[position : position + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if length <= len(digits) or len(record) < length or not equals or not record.endswith(b"\n"):
            raise DocumentError(f"{where}: damaged pax header; write or download the archive again")
        records[key] = value[:-1]
        position += length
    return records


def _problem(kind: bytes, name: str) -> str | None:
    """Return why a member is refused, or None."""
    if not name or "\0" in name:
        return "expected a member with a name"
    if name.startswith("/") or ".." in name.split("/"):
        return "expected a path inside the archive, got one that leads out of it"
    if kind in _REGULAR or kind == _FOLDER:
        return None
    return f"expected a regular file, got {_SPECIAL.get(kind) or f'a member of type {describe_value(_decoded(kind))}'}"


def _cut(position: int, end: int, within: bool) -> str:
    if within:
        return f"the archive is cut: it ends at byte {end:,}, within a member; write or download it again"
    return (
        f"the archive ends at byte {position:,} without the mark of its end: it is cut, or its writer was stopped; "
        "write or download it again, or add the mark with head -c 1024 /dev/zero >> FILE"
    )
