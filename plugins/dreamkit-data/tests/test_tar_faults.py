"""Tars that are hostile, damaged, changed or on a failing disk, and samples that cannot be used."""

import errno
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from dreamkit import Dataset, Document, DocumentError, StorageError
from tar_files import digit_metadata, write_img2dataset, write_tar
from tar_sets import SHARDS, open_tars, sample

HOSTILE: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "a pickle": (sample("a", pkl="x"), "expected no pickle"),
    "a pickle in a sample": ([("a.jpg", b""), ("a.extra.PKL", b"")], "expected no pickle"),
    "a path outside": ([("../a.jpg", b"")], "leads out"),
    "two members of one name": (
        [("a.jpg", b""), ("a.jpg", b"")],
        "expected one member of this name, got two",
    ),
    "too many members": ([(f"a.{n}", b"") for n in range(4097)], "at most 4,096 members"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_refused_by_name(tmp_path: Path, name: str) -> None:
    members, message = HOSTILE[name]
    path = write_tar(tmp_path / "bad.tar", members, tarfile.USTAR_FORMAT)
    with pytest.raises(DocumentError, match=rf"bad\.tar!.*{message}"):
        open_tars(path)


def test_compressed_tars_and_special_files_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "empty.tar").touch()
    (tmp_path / "zip.tar").write_bytes(b"PK\x03\x04" + b"0" * 600)
    for name, message in [
        ("a.tar", "got a compressed file.*gunzip"),
        ("zip.tar", "got a compressed file.*unzip"),
        ("pipe.tar", "regular file"),
        ("empty.tar", "without the mark of its end"),
        ("none.tar", "no such file"),
    ]:
        with pytest.raises(DocumentError, match=message):
            open_tars(tmp_path / name)


def test_a_tar_that_changes_after_the_start_stops_the_run(tmp_path: Path) -> None:
    (path,) = write_img2dataset(tmp_path, SHARDS[:1])
    data, cut = open_tars(path), open_tars(path)
    content = path.read_bytes()
    path.write_bytes(content[:512])
    with pytest.raises(StorageError, match=r"00000\.tar changed while being read"):
        cut[5]
    path.write_bytes(content[1024:])
    with pytest.raises(StorageError, match=r"00000\.tar changed while being read"):
        data[5]
    path.unlink()
    with pytest.raises(StorageError, match="No such file"):
        open_copy(data)[5]


def test_a_tar_that_changes_within_its_layout_stops_the_run(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("a", jpg=True, txt="cat"))
    data, content, status = open_tars(path), path.read_bytes(), path.stat()
    assert data[0].text == "cat"
    path.write_bytes(content.replace(b"cat", b"dog"))
    os.utime(path, ns=(0, status.st_mtime_ns + 1))
    for each in (data, open_copy(data)):  # with the file open, and without
        with pytest.raises(StorageError, match=r"a\.tar changed while being read"):
            each[0]
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(0, status.st_mtime_ns))
    assert data[0].text == "cat"  # once it is restored


def test_a_failing_disk_is_no_fault_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_img2dataset(tmp_path, SHARDS[:1])
    data = open_tars(path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        for read in (lambda: data[3], lambda: open_tars(path, caption="json:caption")):
            with pytest.raises(StorageError, match=r"00000\.tar: cannot read the file: Input/output error"):
                read()
    assert data[3].text == digit_metadata(3)["caption"]  # once the disk works again


def open_copy(data: Dataset) -> Dataset:
    copy: Dataset = pickle.loads(pickle.dumps(data))
    return copy


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (sample("a", jpg=b"no image", txt="a"), r"a\.tar!a\.jpg: cannot read the image"),
        (sample("a", jpg=True, txt=b"\xff\xfe"), r"a\.tar!a: txt: expected a caption in UTF-8, got"),
        (
            sample("a", jpg=True, json=b'{"alt": "\\ud800"}'),
            r"a\.tar!a: json:alt: expected a caption in UTF-8, got",
        ),
    ],
)
def test_a_bad_sample_is_a_document_error(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    write_tar(tmp_path / "a.tar", [*sample("0", jpg=True, txt="a"), *members])
    data = open_tars(tmp_path, caption={"txt": 1.0, "json:alt": 1.0})
    assert isinstance(data[0], Document)
    with pytest.raises(DocumentError, match=message) as error:
        data[1]
    assert not isinstance(error.value, StorageError)
