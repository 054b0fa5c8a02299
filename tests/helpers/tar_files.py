"""Tars of samples in the formats that people have, written from digits."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from PIL.Image import Image as Picture

from dreamkit.document import Document, Image, Text
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


def mmc4_record(document: Document, names: Sequence[str]) -> dict[str, Any]:
    """Return a document in MMC4's form: each image before its text. `names` are those of its images.

    Texts and images have the flags of the document where MMC4's form has no place for them.
    """
    texts: list[Any] = []
    infos: list[dict[str, Any]] = []
    for segment in document:
        if isinstance(segment, Image):
            flags = {"draw": segment.draw, "read": segment.read, "train_on": segment.train_on}
            info = {"image_name": names[len(infos)], "matched_text_index": len(texts), "matched_sim": 0.3}
            infos.append(info | {"raw_url": f"https://example.com/{len(infos)}.jpg"} | flags)
        elif segment.train_on:
            texts.append(segment.text)
        else:
            texts.append({"type": "text", "text": segment.text, "train_on": False})
    texts += [""] * (
        not isinstance(document.segments[-1], Text)
    )  # the last images stand before an empty text
    matrix = [[0.3] * len(texts) for _ in infos]
    return {
        "text_list": texts,
        "image_info": infos,
        "similarity_matrix": matrix,
        "url": "https://example.com",
        "could_have_url_duplicate": 0,
    }


def mmc4_members(key: str, document: Document) -> list[tuple[str, bytes]]:
    """Return the members of a document as DreamLLM stored it: its record, and images under their names' stems."""
    names = [
        f"{hashlib.sha256(f'{key} {n}'.encode()).hexdigest()[:12]}.png" for n in range(len(document.images))
    ]
    record = json.dumps(mmc4_record(document, names)).encode()
    images = [
        (f"{key}.{name.partition('.')[0]}.jpg", encoded(image.picture))
        for name, image in zip(names, document.images, strict=True)
    ]
    return [(f"{key}.json", record), *images]


def write_mmc4(folder: Path, shards: Sequence[Sequence[Document]]) -> list[Path]:
    """Write documents as tars in MMC4's form."""
    return [
        write_tar(
            folder / f"{shard:05}.tar",
            [
                member
                for number, document in enumerate(documents)
                for member in mmc4_members(f"{shard:05}{number:04}", document)
            ],
        )
        for shard, documents in enumerate(shards)
    ]


def write_mmc4_lines(path: Path, documents: Sequence[Document]) -> Path:
    """Write documents as JSON Lines in MMC4's form, with their images in the folder of MMC4's script of downloads."""
    folder = path.with_name(f"{path.name.partition('.')[0]}_images")
    folder.mkdir(parents=True)
    lines = []
    for number, document in enumerate(documents):
        names = [f"{number:06x}{n:06x}.png" for n in range(len(document.images))]
        lines.append(json.dumps(mmc4_record(document, names)))
        for name, image in zip(names, document.images, strict=True):
            (folder / name).write_bytes(encoded(image.picture))
    content = "".join(line + "\n" for line in lines).encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.name.removesuffix(".zip"), content)
    else:
        packers = {".gz": gzip.compress, ".zst": zstandard.compress}
        path.write_bytes(packers.get(path.suffix, bytes)(content))
    return path
