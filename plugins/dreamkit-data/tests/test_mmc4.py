"""The data set `mmc4`, in tars and in JSON Lines beside images."""

import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dreamkit import Document, DocumentError, Image, Text
from dreamkit.data.fingerprint import document_hash
from dreamkit_data import mmc4_lines, tar_samples
from dreamkit_data.mmc4 import MMC4, MMC4Config
from dreamkit_data.mmc4_files import PACKED_LINE, stored_records
from dreamkit_data.mmc4_records import Selection, mmc4_document, record_problem
from mmc4_samples import DOCUMENTS, digit, record, write_record
from tar_files import encoded, mmc4_members, mmc4_record, write_mmc4, write_mmc4_lines


def hashes(documents: Iterable[Document]) -> list[str]:
    """Return a hash of the texts, pixels and flags of each document."""
    return [document_hash(document) for document in documents]


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


def test_all_frames_of_a_zstandard_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(b'{"number": %d}\n' % number) for number in range(3)))
    assert list(stored_records(path)) == [(n, PACKED_LINE, b'{"number": %d}' % (n - 1)) for n in (1, 2, 3)]


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
