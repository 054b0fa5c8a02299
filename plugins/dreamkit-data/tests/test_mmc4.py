"""The data set `mmc4`, in tars and in JSON Lines beside images."""

import errno
import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dreamkit import ConfigError, Document, DocumentError, Image, StorageError, Text
from dreamkit.data.fingerprint import document_hash
from dreamkit_data import mmc4_files, mmc4_lines, tar_samples
from dreamkit_data.mmc4 import MMC4, MMC4Config
from dreamkit_data.mmc4_files import PACKED_LINE, stored_records
from dreamkit_data.mmc4_records import Selection, mmc4_document, record_problem
from dreamkit_digits import digits
from dreamkit_digits.documents import Digits
from tar_files import encoded, mmc4_members, mmc4_record, write_mmc4, write_mmc4_lines, write_tar

KINDS = {"reading": 1.0, "drawing": 1.0, "counting": 2.0, "sums": 4.0}
DOCUMENTS = [Digits(Digits.Config(documents=KINDS))[number] for number in range(30)]


def hashes(documents: Iterable[Document]) -> list[str]:
    """Return a hash of the texts, pixels and flags of each document."""
    return [document_hash(document) for document in documents]


def digit(number: int) -> Any:
    return digits.load("train").image(number)


def record(texts: list[Any], *images: tuple[str, int, float | None], **more: Any) -> dict[str, Any]:
    infos = [
        {"image_name": name, "matched_text_index": index, "matched_sim": similarity}
        for name, index, similarity in images
    ]
    return {"text_list": texts, "image_info": infos, **more}


def write_record(folder: Path, made: dict[str, Any], images: dict[str, int], form: str) -> Path:
    """Write one record and images, digits by their names, in a tar or beside a file of lines."""
    if form == "tar":
        members = [(f"k.{name}", encoded(digit(number))) for name, number in images.items()]
        return write_tar(folder / "a.tar", [("k.json", json.dumps(made).encode()), *members])
    (folder / "images").mkdir(exist_ok=True)
    for name, number in images.items():
        (folder / "images" / name).write_bytes(encoded(digit(number)))
    (folder / "a.jsonl").write_text(json.dumps(made) + "\n")
    return folder / "a.jsonl"


FORMS: dict[str, Callable[[Path], list[Path]]] = {
    "tars": lambda folder: write_mmc4(folder, [DOCUMENTS[:20], DOCUMENTS[20:]]),
    "lines": lambda folder: [
        write_mmc4_lines(folder / "docs_no_face_shard_0_v2.jsonl", DOCUMENTS[:20]),
        write_mmc4_lines(folder / "docs_no_face_shard_1_v2.jsonl", DOCUMENTS[20:]),
    ],
    "zip": lambda folder: [
        write_mmc4_lines(folder / "docs_no_face_shard_0_v2.jsonl.zip", DOCUMENTS[:20]),
        write_mmc4_lines(folder / "docs_no_face_shard_1_v2.jsonl.zip", DOCUMENTS[20:]),
    ],
    "gz": lambda folder: [write_mmc4_lines(folder / "docs.jsonl.gz", DOCUMENTS)],
    "zst": lambda folder: [write_mmc4_lines(folder / "docs.jsonl.zst", DOCUMENTS)],
    "capitals": lambda folder: [
        write_mmc4_lines(folder / "docs.jsonl.gz", DOCUMENTS).rename(folder / "docs.jsonl.GZ")
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_documents_keep_their_texts_images_and_order(tmp_path: Path, form: str) -> None:
    paths = FORMS[form](tmp_path)
    data = MMC4(MMC4Config(tmp_path))
    assert len(data) == 30 and data.notes == []
    assert hashes(data[number] for number in range(30)) == hashes(DOCUMENTS)
    shard = str(paths[-1])
    assert data[29].name in (f"{shard}!000010009", f"{shard}:10", f"{shard}:30")
    copy = pickle.loads(pickle.dumps(data))
    assert hashes(copy[number] for number in (29, 0, 20)) == hashes(DOCUMENTS[n] for n in (29, 0, 20))
    for number in (-1, 30):
        with pytest.raises(IndexError):
            data[number]


@pytest.mark.parametrize("form", FORMS)
def test_a_second_start_reads_no_file(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FORMS[form](tmp_path)
    first = MMC4(MMC4Config(tmp_path))
    monkeypatch.setattr(tar_samples, "samples", None)
    monkeypatch.setattr(mmc4_lines, "stored_records", None)
    monkeypatch.setattr(os, "pread", None)
    assert len(MMC4(MMC4Config(tmp_path))) == len(first)


def test_images_stand_before_or_after_their_texts_in_order() -> None:
    made = record(["a", " b ", "", "c"], ("0.jpg", 1, None), ("1.jpg", 0, None), ("2.jpg", 1, None))
    assert record_problem(made) is None
    pictures = {number: digit(number) for number in range(3)}

    def forms(**settings: Any) -> list[str | int]:
        document = mmc4_document(made, pictures, name="x", **settings)
        return [
            segment.text
            if isinstance(segment, Text)
            else next(number for number in pictures if segment.picture is pictures[number])
            for segment in document
        ]

    assert forms(draw=True, place="before") == [1, "a", 0, 2, "b c"]
    assert forms(draw=True, place="after") == ["a", 1, "b", 0, 2, "c"]
    for draw in (True, False):
        images = mmc4_document(made, pictures, name="x", draw=draw, place="before").images
        assert {(image.draw, image.read) for image in images} == {(draw, True)}


@pytest.mark.parametrize("form", ["tar", "lines"])
def test_similarity_number_and_absence_choose_the_images(tmp_path: Path, form: str) -> None:
    made = record(
        ["a", "b", "c"],
        ("0.png", 0, 0.2),
        ("1.png", 1, 0.4),
        ("2.png", 2, 0.3),
        ("3.png", 2, None),
        ("4.png", 0, 0.9),
    )
    path = write_record(tmp_path, made, {f"{n}.png": n for n in range(4)}, form)  # 4.png was not downloaded

    def drawn(**settings: Any) -> list[int]:
        (document,) = list(MMC4(MMC4Config(path, **settings)))
        pixels = [image.picture.tobytes() for image in document.images]
        return [next(n for n in range(4) if digit(n).tobytes() == each) for each in pixels]

    assert drawn() == [0, 1, 2, 3]
    assert drawn(min_similarity=0.25) == [1, 2]
    assert drawn(max_images=2) == [1, 2]
    assert drawn(max_images=1, min_similarity=0.25) == [1]
    (note,) = MMC4(MMC4Config(path)).notes
    assert f"left out: 1 image not in its {'archive' if form == 'tar' else 'folder'}, such as a." in note
    with pytest.raises(DocumentError, match=r"no documents with images; .*1 document without an image"):
        MMC4(MMC4Config(path, min_similarity=0.95))


def test_image_names_of_several_forms_are_matched_in_tars(tmp_path: Path) -> None:
    names = {
        "b9040a.jpg": "b9040a.jpg",
        "DB1C.JPEG": "db1c.jpg",
        "two.dots.png": "two.jpg",
        "bare": "bare.png",
    }
    made = record(["a"], *((name, 0, None) for name in names))
    path = write_record(tmp_path, made, {member: n for n, member in enumerate(names.values())}, "tar")
    (document,) = list(MMC4(MMC4Config(path)))
    assert [image.picture.tobytes() for image in document.images] == [digit(n).tobytes() for n in range(4)]


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


def test_all_frames_of_a_zstandard_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(b'{"number": %d}\n' % number) for number in range(3)))
    assert list(stored_records(path)) == [(n, PACKED_LINE, b'{"number": %d}' % (n - 1)) for n in (1, 2, 3)]


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


def test_images_that_are_downloaded_after_the_index_are_read_at_the_next_start(tmp_path: Path) -> None:
    made = record(["a", "b"], ("0.png", 0, None), ("1.png", 1, None))
    path = write_record(tmp_path, made, {"0.png": 0}, "lines")
    path.write_text(path.read_text() + json.dumps(record(["c"], ("1.png", 0, None))) + "\n")
    first = MMC4(MMC4Config(path))
    assert len(first) == 1 and len(first.notes) == 2
    (tmp_path / "images" / "1.png").write_bytes(encoded(digit(1)))
    os.utime(tmp_path / "images", ns=(0, 1))  # clocks of file systems can be coarse
    data = MMC4(MMC4Config(path))
    assert [len(document.images) for document in data] == [2, 1] and data.notes == []


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


def test_flags_of_a_record_override_the_settings() -> None:
    document = Document(
        (Image(digit(0)), Text("plus", train_on=False), Image(digit(1), draw=True), Text("is"))
    )
    made = mmc4_record(document, ["0.png", "1.png"])
    for draw in (True, False):
        pictures = {0: digit(0), 1: digit(1)}
        assert mmc4_document(made, pictures, draw=draw, place="before", name="x") == document
    made["image_info"][0] |= {"draw": False, "read": False}
    assert "set one to true" in str(record_problem(made))
    assert Selection().numbers(made, lambda name: True) == [0, 1]
    assert len(mmc4_members("k", document)) == 3


@pytest.mark.parametrize("form", ["tar", "lines", "array"])
def test_a_record_with_an_instruction_is_a_conversation(tmp_path: Path, form: str) -> None:
    made = record(["a", "b"], ("0.png", 1, None), instruction=" draw it ")
    path = write_record(tmp_path, made, {"0.png": 0}, "tar" if form == "tar" else "lines")
    if form == "array":
        path = tmp_path / "instruct.json"
        path.write_text(json.dumps([record(["x"], ("gone.png", 0, None)), made], indent=1))
    data = MMC4(MMC4Config(path))
    (document,) = list(data)
    text, before, image, after = document
    assert (text, before, after) == (
        Text("draw it", role="user"),
        Text("a", role="assistant"),
        Text("b", role="assistant"),
    )
    assert isinstance(image, Image) and image.draw and image.read and image.role == "assistant"
    names = {"tar": "a.tar!k", "lines": "a.jsonl:1", "array": "instruct.json: record 2"}
    assert document.name == f"{tmp_path}/{names[form]}"
    for wrong in (" ", 3):
        assert "instruction: expected a text" in str(record_problem(made | {"instruction": wrong}))


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
