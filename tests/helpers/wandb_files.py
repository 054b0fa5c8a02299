"""A reader of W&B's offline files, which hold protobuf records in LevelDB's log format.

The format: https://github.com/google/leveldb/blob/main/doc/log_format.md, after a header of seven bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from struct import unpack_from
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 2**15, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(file: Path) -> Iterator[Any]:
    """Yield the records of a file, oldest first."""
    data, at, parts = file.read_bytes(), HEADER, b""
    assert data.startswith(b":W&B")
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = unpack_from("<IHB", data, at)
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""
