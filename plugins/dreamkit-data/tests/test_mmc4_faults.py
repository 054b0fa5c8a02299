"""MMC4: records, names and files that are refused, and files that change."""

import errno
import gzip
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dreamkit import ConfigError, DocumentError, StorageError
from dreamkit_data import mmc4_files, mmc4_lines
from dreamkit_data.mmc4 import MMC4, MMC4Config
from dreamkit_data.mmc4_files import stored_records
from mmc4_samples import DOCUMENTS, record, write_record
from tar_files import write_mmc4, write_mmc4_lines

HOSTILE_NAMES = [
    "/etc/passwd",
    "../a.jpg",
    "..",
    ".",
    "",
    "a/b.jpg",
    "a\\b.jpg",
    "a\0.jpg",
    "x" * 300,
    None,
    3,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("form", ["tar", "lines"])
def test_image_names_that_are_not_bare_are_refused(tmp_path: Path, form: str, name: Any) -> None:
    made = record(["a"], ("0.png", 0, None), (name, 0, None))
    path = write_record(tmp_path, made, {"0.png": 0}, form)
    place = r"a\.tar!k: \.json" if form == "tar" else r"a\.jsonl:1"
    with pytest.raises(DocumentError, match=rf"{place}: image_info\[1\]\.image_name: expected"):
        MMC4(MMC4Config(path))


def test_a_linked_image_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path, record(["a"], ("l.png", 0, None)), {"0.png": 0}, "lines")
    (tmp_path / "images" / "l.png").symlink_to(tmp_path / "images" / "0.png")
    with pytest.raises(DocumentError, match="expected an image, got a link"):
        MMC4(MMC4Config(path))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"text_list": ["a"]}, "missing 'image_info'"),
        (record("a"), "text_list: expected a list, got 'a'"),  # type: ignore[arg-type]
        (record(["a", 3]), r"text_list\[1\]: expected a text, got 3"),
        (record(["\ud800"]), r"text_list\[0\]: .*surrogate"),
        (record(["a"], ("0.png", 1, None)), r"matched_text_index: expected a number from 0 to 0, got 1"),
        (record(["a"], ("0.png", True, None)), "matched_text_index: expected"),
        (record(["a"], ("0.png", 0, "x")), "matched_sim: expected a number, got 'x'"),  # type: ignore[arg-type]
        ({"text_list": ["a"], "image_info": [3]}, r"image_info\[0\]: expected a section, got 3"),
    ],
)
@pytest.mark.parametrize("form", ["tar", "lines"])
def test_records_of_another_form_are_refused_with_the_place(
    tmp_path: Path, form: str, made: dict[str, Any], message: str
) -> None:
    place = r"a\.tar!k: \.json" if form == "tar" else r"a\.jsonl:1"
    with pytest.raises(DocumentError, match=f"{place}: .*{message}"):
        MMC4(MMC4Config(write_record(tmp_path, made, {"0.png": 0}, form)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n{\n", r"a\.jsonl:2: expected one JSON object, got JSONDecodeError"),
        (b"3\n", r"a\.jsonl:1: expected one JSON object, got '3'"),
        (b"[1]\n", r"a\.jsonl:1: expected one JSON object, got '\[1\]'"),
        (b"[{}, 1]", r"a\.jsonl: record 1: missing 'text_list'; correct"),
        (b"[{", r"a\.jsonl: expected an array of records, got JSONDecodeError"),
        (b"\xff\xfe\n", r"a\.jsonl:1: expected one JSON object, got UnicodeDecodeError"),
        (b"", "no documents with images"),
    ],
)
def test_damaged_lines_are_refused_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        MMC4(MMC4Config(tmp_path / "a.jsonl"))


def test_damaged_and_odd_packed_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\0")
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.compress(b"{}\n" * 99)[:-1])
    (tmp_path / "cut.jsonl.zip").write_bytes(b"PK\x03\x04")
    with zipfile.ZipFile(tmp_path / "two.jsonl.zip", "w") as archive:
        archive.writestr("a.jsonl", b"")
        archive.writestr("b.jsonl", b"")
    for name, message in [
        ("cut.jsonl.gz", "cannot unpack the file"),
        ("cut.jsonl.zst", "cannot unpack the file: .*ends inside a frame; download it again"),
        ("cut.jsonl.zip", "cannot unpack the file"),
        ("two.jsonl.zip", "expected one file in the archive without a password, got 2"),
    ]:
        with pytest.raises(DocumentError, match=message):
            MMC4(MMC4Config(tmp_path / name))


def test_a_line_of_a_packed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmc4_files, "MOST_LINE", 2**20)
    for suffix, pack in PACKERS.items():
        path = tmp_path / f"a.jsonl.{suffix}"
        path.write_bytes(pack(b"{}\n" + b" " * 2**24))
        with pytest.raises(
            DocumentError, match=rf"{path.name}:2: expected a line of at most 1,048,576 bytes"
        ):
            list(stored_records(path))


def test_an_image_that_vanishes_is_left_out_and_a_damaged_one_is_a_document_error(tmp_path: Path) -> None:
    made = record(["a", "b"], ("0.png", 0, None), ("1.png", 1, None))
    data = MMC4(MMC4Config(write_record(tmp_path, made, {"0.png": 0, "1.png": 1}, "lines")))
    (tmp_path / "images" / "0.png").unlink()
    assert len(data[0].images) == 1
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    with pytest.raises(DocumentError, match=r"a\.jsonl:1: .*cannot read the image"):
        data[0]
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(DocumentError, match=r"a\.jsonl:1: expected an image in .*got none"):
        data[0]


PACKERS = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


@pytest.mark.parametrize("method", [*METHODS, *PACKERS])
def test_each_damaged_byte_of_a_packed_file_is_refused_or_harmless(tmp_path: Path, method: str) -> None:
    lines = b'{"text_list": ["a"], "image_info": []}\n' * 3
    if method in PACKERS:
        path = tmp_path / f"a.jsonl.{method}"
        path.write_bytes(PACKERS[method](lines))
    else:
        path = tmp_path / "a.jsonl.zip"
        with zipfile.ZipFile(path, "w", METHODS[method]) as archive:
            archive.writestr("a.jsonl", lines)
    content, refused = path.read_bytes(), 0
    assert len(list(stored_records(path))) == 3
    for number in range(len(content)):
        path.write_bytes(content[:number] + bytes([content[number] ^ 0xFF]) + content[number + 1 :])
        try:
            list(stored_records(path))
        except DocumentError as error:
            assert not isinstance(error, StorageError) and "None" not in str(error)
            refused += 1
    assert refused > len(content) / 3


def test_lines_that_change_after_the_start_stop_the_run(tmp_path: Path) -> None:
    path = write_mmc4_lines(tmp_path / "docs.jsonl", DOCUMENTS)
    data = MMC4(MMC4Config(path))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StorageError, match=r"docs\.jsonl changed while being read"):
        data[3]


def test_lines_that_change_within_their_layout_stop_the_run(tmp_path: Path) -> None:
    path = write_record(tmp_path, record(["cat"], ("0.png", 0, None)), {"0.png": 0}, "lines")
    data, time = MMC4(MMC4Config(path)), path.stat().st_mtime_ns
    assert data[0].text == "cat"
    path.write_bytes(path.read_bytes().replace(b"cat", b"dog"))
    os.utime(path, ns=(0, time + 1))
    with pytest.raises(StorageError, match=r"a\.jsonl changed while being read"):
        data[0]


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_mmc4(tmp_path, [DOCUMENTS[:2]])
    with pytest.raises(ConfigError, match="expected at least 1, got 0"):
        MMC4Config(tmp_path, max_images=0)
    with pytest.raises(DocumentError, match="remove 'images'"):
        MMC4(MMC4Config(tmp_path, images=tmp_path))
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DocumentError, match="got both; name them in two data sets"):
        MMC4(MMC4Config(tmp_path))
    for images, message in [
        (None, "download the images, or set 'images'"),
        (tmp_path / "no", "no such folder"),
    ]:
        with pytest.raises(DocumentError, match=message):
            MMC4(MMC4Config(tmp_path / "a.jsonl", images=images))


def test_an_image_that_cannot_be_reached_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_record(tmp_path, record(["a"], ("0.png", 0, None)), {"0.png": 0}, "lines")
    data = MMC4(MMC4Config(path))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(mmc4_lines.os, "lstat", fail)
        with pytest.raises(StorageError, match=r"0\.png: cannot reach the image: Input/output error"):
            data[0]
    assert len(data[0].images) == 1
