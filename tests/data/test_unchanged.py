"""A file that changes while it is read, or between two readings of it, is an error that names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from dreamkit.data.image_files import open_picture
from dreamkit.data.pairs import Pairs
from dreamkit.data.text_files import read_text
from dreamkit.data.unchanged import file_status, unchanged
from dreamkit.errors import DocumentError

CHANGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: path.write_bytes(b""),
    "appended": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "rewritten": lambda path: _rewrite(path),
    "replaced": lambda path: _replace(path),
    "removed": lambda path: path.unlink(),
}


def _rewrite(path: Path) -> None:
    """Write other bytes of the same number; on a coarse clock, the time alone need not differ."""
    before = path.stat().st_mtime_ns
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(before + 1_000_000, before + 1_000_000))


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[::-1] + b" ")
    new.rename(path)


changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    for name in ("a", "b"):
        tiny.picture(0).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"image {name}")
    return Pairs(Pairs.Config(tmp_path))


@changes
@pytest.mark.parametrize("name", ["b.png", "b.txt"])
def test_a_changed_file_of_a_folder_is_refused(
    pairs: Pairs, change: Callable[[Path], object], name: str
) -> None:
    path = pairs.config.path / name
    assert pairs[1].text == "image b"
    change(path)
    assert pairs[0].text == "image a"
    with pytest.raises(
        DocumentError, match=rf"{path} changed while being read: .*; restore it or start anew"
    ):
        pairs[1]


@changes
@pytest.mark.parametrize("fails", [False, True], ids=["read", "failed"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, change: Callable[[Path], object], fails: bool
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"some bytes")
    with pytest.raises(DocumentError, match=rf"{path} changed while being read"), unchanged(path):
        change(path)
        if fails:
            raise ValueError("a cut image")


def test_a_file_that_stays_may_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("some text")
    before = file_status(path)
    for _ in range(2):
        assert read_text(path, before) == "some text"
    with pytest.raises(ZeroDivisionError), unchanged(path, before):
        1 / 0  # noqa: B018


def test_an_image_of_a_record_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    tiny.picture(0).save(path)
    monkeypatch.setattr("dreamkit.data.image_files.picture_problem", lambda picture: os.truncate(path, 10))
    with pytest.raises(DocumentError, match=rf"c\.jsonl:3: {path} changed while being read"):
        open_picture(path, "c.jsonl:3")
