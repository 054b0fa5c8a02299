"""The outcome of each kind of image and caption in a folder of pairs, as the table of docs/data-run.md has it."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL, ImageCms

import tiny
from dreamkit import to_rgb
from dreamkit.data.mixture import Mixture
from dreamkit.data.pairs import Pairs
from dreamkit.data.samples import Samples

SEQUENCER = tiny.model().sequencer()
RED = (255, 0, 0)


def save(picture: PIL.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def red(width: int = 16, height: int = 16, mode: str = "RGB") -> PIL.Image:
    return PIL.new("RGB", (width, height), RED).convert(mode)


def resized_header(side: int) -> bytes:
    """Return a PNG file of one pixel whose header has another size."""
    data = bytearray(save(PIL.new("L", (1, 1)), "PNG"))
    data[16:24] = 2 * side.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def transparent_palette() -> bytes:
    palette = PIL.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 255])
    return save(palette, "PNG", transparency=0)


def turned() -> bytes:
    picture = red(16, 8)
    picture.getexif()[0x0112] = 6
    return save(picture, "JPEG", exif=picture.getexif(), quality=95)


def sixteen_bits() -> bytes:
    return save(PIL.fromarray(np.full((8, 8), 65535, np.uint16)), "PNG")


def swapped_profile() -> bytes:
    """Return the profile of sRGB with red and green exchanged: the tags of the primaries (ICC.1:2022, 7.3)."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    start, end = 132, 132 + 12 * int.from_bytes(profile[128:132], "big")
    names = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    tags = [profile[place : place + 12] for place in range(start, end, 12)]
    assert names.keys() <= {tag[:4] for tag in tags}
    table = b"".join(names.get(tag[:4], tag[:4]) + tag[4:] for tag in tags)
    swapped = profile[:start] + table + profile[end:]
    return swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))  # in its description


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.png", b"", "expected an image, got an empty file"),
    "truncated PNG": ("a.png", save(tiny.picture(0), "PNG")[:300], "cannot read the image"),
    "truncated JPEG": ("a.jpg", save(tiny.picture(0, 64), "JPEG")[:900], "image file is truncated"),
    "a web page": ("a.jpg", b"<!DOCTYPE html><html>", "expected an image of a format that Pillow reads"),
    "bomb": (
        "a.png",
        resized_header(9_460),
        "expected an image of at most 89,478,485 pixels, got 9460 x 9460",
    ),
    "large bomb": ("a.png", resized_header(10**6), "pixels"),
    "thread": (
        "a.png",
        save(red(1, 101), "PNG"),
        "longer side is at most 100 times the shorter, got 1 x 101",
    ),
    "program": ("a.eps", save(red(), "EPS"), "expected an image of a format that Pillow reads"),
    "floats": (
        "a.tif",
        save(PIL.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "expected an image of 8 or 16",
    ),
}
USED: dict[str, tuple[str, Callable[[], bytes], tuple[int, int], tuple[int, int, int]]] = {
    "one pixel wide": ("a.png", lambda: save(red(1, 100), "PNG"), (1, 100), RED),
    "one pixel": ("a.png", lambda: save(red(1, 1), "PNG"), (1, 1), RED),
    "animation": (
        "a.gif",
        lambda: save(red(), "GIF", save_all=True, append_images=[PIL.new("RGB", (16, 16), "blue")]),
        (16, 16),
        RED,
    ),
    "CMYK": ("a.jpg", lambda: save(red(mode="CMYK"), "JPEG", quality=95), (16, 16), RED),
    "16 bits": ("a.png", sixteen_bits, (8, 8), (255, 255, 255)),
    "transparent palette": ("a.png", transparent_palette, (16, 16), (255, 255, 255)),
    "turned": ("a.jpg", turned, (8, 16), RED),
    "profile": (
        "a.png",
        lambda: save(red(), "PNG", icc_profile=swapped_profile()),
        (16, 16),
        (0, 255, 0),
    ),
    "broken profile": (
        "a.jpg",
        lambda: save(red(), "JPEG", icc_profile=b"broken", quality=95),
        (16, 16),
        RED,
    ),
    "broken EXIF": (
        "a.jpg",
        lambda: save(red(), "JPEG", exif=b"Exif\0\0II*\0\xff", quality=95),
        (16, 16),
        RED,
    ),
    "wrong suffix": ("a.png", lambda: save(red(), "JPEG", quality=95), (16, 16), RED),
}


def samples(folder: Path, name: str, data: bytes, caption: bytes = b"an image") -> Samples:
    (folder / name).write_bytes(data)
    (folder / name).with_suffix(".txt").write_bytes(caption)
    (folder / "good.png").write_bytes(save(PIL.new("RGB", (16, 16), "lime"), "PNG"))
    (folder / "good.txt").write_text("a good one")
    return Samples(Mixture([Pairs(Pairs.Config(folder))], [1.0], length=8), SEQUENCER)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("name", "data", "reason"), BAD.values(), ids=BAD)
def test_a_bad_image_is_skipped_with_its_file(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    run = samples(tmp_path, name, data)
    sequences = [run[place] for place in range(8)]
    assert {sequence.name for sequence in sequences} == {str(tmp_path / "good.png")}
    records = [document for sequence in sequences for document in sequence.skipped]
    assert {(document.shard, document.member) for document in records} == {(str(tmp_path), name)}
    assert all(reason in document.reason for document in records)


@pytest.mark.parametrize(("name", "data", "size", "colour"), USED.values(), ids=USED)
def test_an_unusual_image_is_used(
    tmp_path: Path, name: str, data: Callable[[], bytes], size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    run = samples(tmp_path, name, data())
    sequences = [run[place] for place in range(8)]
    assert not any(sequence.skipped for sequence in sequences)
    (picture,) = {id(s.draws[0][1]): s.draws[0][1] for s in sequences[:2] if s.name.endswith(name)}.values()
    rgb = to_rgb(picture)
    assert rgb.size == size and rgb.getpixel((0, 0)) == pytest.approx(colour, abs=3)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (b"", "empty caption"),
        (b" \n\t", "empty caption"),
        ("Stra\u00dfe".encode("latin1"), "expected UTF-8, got byte 0xdf"),
        ("ein Wort".encode("utf-16"), "expected UTF-8, got UTF-16"),
        (b"\x1f\x8b\x08\x00", "expected text, got a gzip file"),
    ],
)
def test_a_bad_caption_is_skipped_with_its_file(tmp_path: Path, caption: bytes, reason: str) -> None:
    run = samples(tmp_path, "a.png", save(red(), "PNG"), caption)
    records = [document for place in range(8) for document in run[place].skipped]
    assert {(document.shard, document.member) for document in records} == {(str(tmp_path), "a.txt")}
    assert all(reason in document.reason for document in records)
