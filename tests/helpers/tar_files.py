"""Tars of samples in the formats that people have, written from digits."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL.Image import Image as Picture

from dreamkit_digits import digits

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def encoded(picture: Picture, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """Write members as webdataset's TarWriter does: its times are fractions, so that each member has a pax header."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o444, time.time()
            member.uname = member.gname = "bigdata"
            tar.addfile(member, io.BytesIO(content))
    return path


def digit_metadata(number: int, **changes: Any) -> dict[str, Any]:
    """Return the metadata of digit `number` of the training part, as img2dataset writes them."""
    label = int(digits.load("train").labels[number])
    return {
        "url": f"https://example.com/{number}.jpg",
        "caption": f"a {WORDS[label]}",
        "key": f"{number:09}",
        "status": "success",
        "error_message": None,
        "width": digits.IMAGE_SIZE,
        "height": digits.IMAGE_SIZE,
        "original_width": 8,
        "original_height": 8,
        "exif": "{}",
        "sha256": hashlib.sha256(str(number).encode()).hexdigest(),
        **changes,
    }


def digit_sample(metadata: dict[str, Any], kind: str = "PNG", suffix: str = "jpg") -> list[tuple[str, bytes]]:
    """Return the members of a sample in img2dataset's order; PNG, so that tests compare pixels."""
    key, caption = metadata["key"], metadata["caption"]
    picture = digits.load("train").image(int(key))
    return [
        (f"{key}.{suffix}", encoded(picture, kind)),
        (f"{key}.json", json.dumps(metadata, indent=4).encode()),
        (f"{key}.txt", (caption or "").encode()),
    ]


def write_img2dataset(folder: Path, shards: Sequence[Sequence[dict[str, Any]]]) -> list[Path]:
    """Write `NNNNN.tar` and `NNNNN.parquet` for each list of metadata. Failures are in the Parquet alone."""
    paths = []
    for number, rows in enumerate(shards):
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{number:05}.parquet")
        successes = [row for row in rows if row["status"] == "success"]
        members = [member for row in successes for member in digit_sample(row)]
        paths.append(write_tar(folder / f"{number:05}.tar", members))
    return paths
