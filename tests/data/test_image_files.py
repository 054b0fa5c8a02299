"""Damaged, hostile and unusual images: each is read in a documented way, or refused with the reason."""

from __future__ import annotations

import errno
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

import tiny
from dreamkit import to_rgb
from dreamkit.data.image_files import decode_picture, open_picture
from dreamkit.data.text_files import read_text
from dreamkit.errors import DocumentError, StorageError


def encoded(picture: PIL.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Return a small PNG file whose header has this size."""
    data = bytearray(encoded(PIL.new("L", (1, 1)), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def refusal(data: bytes, tmp_path: Path) -> str:
    """Return why these bytes are refused: in a file and in memory for the same reason."""
    path = tmp_path / "a.img"
    path.write_bytes(data)
    with pytest.raises(DocumentError) as in_file:
        open_picture(path, "c.jsonl:3")
    with pytest.raises(DocumentError) as in_memory:
        decode_picture(data, "a.tar!7")
    assert type(in_file.value) is type(in_memory.value) is DocumentError
    message, shorter = str(in_file.value), str(in_memory.value)
    assert message.startswith("c.jsonl:3: ") and shorter.startswith("a.tar!7: ") and str(path) in message
    _, _, reason = shorter.partition("a.tar!7: ")
    assert message.endswith(reason.removeprefix("cannot read the image: "))
    return reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_image_is_refused(tmp_path: Path, kind: str) -> None:
    data = encoded(tiny.picture(0, 64), kind)
    for part in (0.02, 0.5, 0.9):
        assert refusal(data[: int(part * len(data))], tmp_path)


def test_an_empty_file_and_one_without_an_image_are_refused(tmp_path: Path) -> None:
    assert refusal(b"", tmp_path) == "expected an image, got an empty file"
    for data in (b"<html>", b"\0" * 1000, b"%PDF-1.5"):
        assert "expected an image of a format that Pillow reads" in refusal(data, tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 20_000, 10**6])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda picture: pytest.fail("decoded"))
    assert "pixels" in refusal(png_of_size(side, side), tmp_path)


def test_a_narrow_image_is_read_up_to_a_ratio_of_100(tmp_path: Path) -> None:
    narrow = decode_picture(encoded(PIL.new("RGB", (1, 100)), "PNG"), "x")
    assert narrow.size == (1, 100) and decode_picture(encoded(PIL.new("L", (1, 1)), "PNG"), "x").size == (
        1,
        1,
    )
    for size in ((1, 101), (50_000, 1)):
        assert refusal(encoded(PIL.new("RGB", size), "PNG"), tmp_path) == (
            f"expected an image whose longer side is at most 100 times the shorter, got {size[0]} x {size[1]}; crop it"
        )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_read(kind: str) -> None:
    frames = [PIL.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    picture = decode_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), "x")
    assert to_rgb(picture).getpixel((4, 4)) == pytest.approx((255, 0, 0), abs=3)


def test_unusual_modes_are_read() -> None:
    clear = PIL.new("RGBA", (4, 4), (255, 0, 0, 0)).convert("P")
    clear.info["transparency"] = clear.getpixel((0, 0))
    turned = PIL.new("RGB", (8, 4), "red")
    turned.getexif()[0x0112] = 6
    expected: dict[str, tuple[bytes, str, tuple[int, int], tuple[int, int, int]]] = {
        "CMYK": (encoded(PIL.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), "CMYK", (4, 4), (255, 0, 0)),
        "CMYK JPEG": (
            encoded(PIL.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
            "CMYK",
            (8, 8),
            (255, 0, 0),
        ),
        "16 bits": (
            encoded(PIL.fromarray(np.full((4, 4), 128 * 257, np.uint16)), "PNG"),
            "I;16",
            (4, 4),
            (128, 128, 128),
        ),
        "transparent palette": (encoded(clear, "PNG", transparency=0), "P", (4, 4), (255, 255, 255)),
        "turned": (encoded(turned, "JPEG", exif=turned.getexif()), "RGB", (4, 8), (255, 0, 0)),
    }
    for name, (data, mode, size, colour) in expected.items():
        picture = decode_picture(data, name)
        rgb = to_rgb(picture)
        assert (picture.mode, rgb.size) == (mode, size), name
        assert rgb.getpixel((2, 2)) == pytest.approx(colour, abs=3), name


def test_a_program_in_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *_, **named: pytest.fail("a program was run"))
    data = encoded(PIL.new("RGB", (8, 8)), "EPS")
    assert "expected an image of a format that Pillow reads" in refusal(data, tmp_path)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_an_image_is_not_bad_if_the_process_lacks_memory_or_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "a.png"
    tiny.picture(0).save(path)

    def fail(*_: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(PIL, "open", fail)
    with pytest.raises(type(error)) as in_file:
        open_picture(path, "a place")
    with pytest.raises(type(error)) as in_memory:
        decode_picture(path.read_bytes(), "a place")
    assert in_file.value is error and in_memory.value is error


FAILURES = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.ENOTCONN]


@pytest.mark.parametrize("number", FAILURES)
def test_a_failing_disk_is_not_a_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "a.png"
    tiny.picture(0).save(path)

    def fail(*_: Any, **named: Any) -> None:
        raise OSError(number, "the disk fails", str(path))

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(StorageError, match=r"c:1: cannot read the image .*a\.png: the disk fails"):
        open_picture(path, "c:1")
    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr("builtins.open", fail)
    for read in (lambda: open_picture(path, "c:1"), lambda: read_text(path)):
        with pytest.raises(StorageError, match="the disk fails"):
            read()


@pytest.mark.parametrize("name", ["none.png", "a.png/b.png", "folder", "x" * 300, "loop"])
def test_a_path_to_no_file_is_a_bad_sample(tmp_path: Path, name: str) -> None:
    tiny.picture(0).save(tmp_path / "a.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for read in (lambda: open_picture(tmp_path / name, "c:1"), lambda: read_text(tmp_path / name)):
        with pytest.raises(DocumentError) as caught:
            read()
        assert not isinstance(caught.value, StorageError)
