"""Manifests of folders: read as written, and refused if damaged."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypedDict

import pytest
from hypothesis import given, settings, strategies as st

from dreamkit.errors import DreamkitError, printable
from dreamkit.storage.folder_manifest import FolderManifest, schema_errors
from dreamkit.storage.folders import FileRecord, describe_files


class Book(TypedDict):
    title: str
    pages: int


class ShelfError(DreamkitError):
    """An error about a shelf."""


@dataclass(frozen=True)
class Shelf(FolderManifest):
    KIND: ClassVar[str] = "shelf"
    FILE: ClassVar[str] = "shelf.json"
    FORMAT: ClassVar[int] = 3
    ERROR: ClassVar[type[DreamkitError]] = ShelfError

    books: list[Book]
    lent: dict[str, list[int]]

    @classmethod
    def find_hint(cls, folder: Path) -> str:
        return "buy one"

    @classmethod
    def repair_hint(cls, folder: Path) -> str:
        return "glue it"

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"lent": {}, **data} if data.get("format") == 2 else data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a shelf with one file."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "page.txt").write_text("once upon a time")
    books: list[Book] = [{"title": "Ä", "pages": 3}]
    files = describe_files(folder)
    Shelf(format=3, dreamkit="1", files=files, books=books, lent={"ann": [1]}).write(folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / Shelf.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_manifest_is_read_as_written(folder: Path) -> None:
    text = (folder / "shelf.json").read_text(encoding="utf-8")
    assert [*json.loads(text)] == ["format", "dreamkit", "books", "lent", "files"] and "Ä" in text
    manifest = Shelf.read(folder)
    manifest.verify(folder)
    manifest.write(folder)
    assert (folder / "shelf.json").read_text(encoding="utf-8") == text


@given(st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=50))
def test_the_names_of_files_may_have_any_characters(name: str) -> None:
    with TemporaryDirectory() as path:
        files: dict[str, FileRecord] = {name: {"size": 1, "sha256": ""}}
        Shelf(format=3, dreamkit="1", files=files, books=[], lent={name: []}).write(Path(path))
        if name == "..":
            with pytest.raises(ShelfError, match="is not inside the shelf"):
                Shelf.read(Path(path))
        else:
            manifest = Shelf.read(Path(path))
            assert (manifest.files, manifest.lent) == (files, {name: []})
            with pytest.raises(ShelfError) as caught:
                manifest.verify(Path(path))
            assert str(caught.value).endswith(f"glue it\n  {printable(name)}: missing")


def test_an_older_format_is_upgraded(folder: Path) -> None:
    content = json.loads((folder / Shelf.FILE).read_text())
    del content["lent"]
    (folder / Shelf.FILE).write_text(json.dumps(content))
    with pytest.raises(ShelfError, match=r"shelf\.json: the shelf is damaged; glue it\n.*unknown: lent"):
        Shelf.read(folder)
    edit(folder, format=2)
    assert Shelf.read(folder).lent == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 4, "new": 1}, "format version 4, written by dreamkit 1, .* up to 3; install a newer"),
        ({"format": 0}, "format: expected at least 1, got 0"),
        ({"format": True}, "format: expected an integer, got true"),
        ({"files": {"../a": {"size": 1, "sha256": ""}}}, r"files: '\.\./a' is not inside the shelf"),
        ({"files": {"/a": {"size": 1, "sha256": ""}}}, "files: '/a' is not inside the shelf"),
        ({"books": [{"title": "A"}]}, r"books\.0: missing or unknown: pages"),
        ({"books": [{"title": "A", "pages": "9"}]}, r'books\.0\.pages: expected an integer, got "9"'),
        ({"lent": {"ann": 1}}, r"lent\.ann: expected a list, got 1"),
        ({"lent": {"a\n\x1bn": 1}}, r"lent\.a\\n\\x1bn: expected a list, got 1"),
        ({"a\nb": 1}, r"missing or unknown: a\\nb"),
        ({"files": {"/a\n": {"size": 1, "sha256": ""}}}, r"files: '/a\\n' is not inside the shelf"),
    ],
)
def test_an_invalid_manifest_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ShelfError, match=message):
        Shelf.read(folder)


@pytest.mark.parametrize("text", ["", "{", "[" * 10**5, "\xff"])
def test_invalid_json_is_refused(folder: Path, text: str) -> None:
    (folder / Shelf.FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ShelfError, match=r"shelf\.json: the shelf is damaged; glue it\n  \w"):
        Shelf.read(folder)


def test_each_changed_or_missing_file_is_named(folder: Path) -> None:
    manifest = Shelf.read(folder)
    (folder / "page.txt").write_text("once upon a tide")
    manifest.verify(folder, read=False)
    with pytest.raises(
        ShelfError, match=r"shelf: the shelf is damaged; glue it\n  page\.txt: its content has changed"
    ):
        manifest.verify(folder)
    (folder / "page.txt").unlink()
    with pytest.raises(ShelfError, match=r"page\.txt: missing"):
        manifest.verify(folder, read=False)


def test_a_folder_of_another_kind_is_neither_read_nor_replaced(folder: Path) -> None:
    Shelf.refuse_to_replace(folder)
    Shelf.refuse_to_replace(folder / "none")
    (folder / Shelf.FILE).unlink()
    with pytest.raises(ShelfError, match=r"is not a shelf: it has no shelf\.json; buy one"):
        Shelf.read(folder)
    with pytest.raises(ShelfError, match="is not empty, and is not a shelf; name another folder, or remove"):
        Shelf.refuse_to_replace(folder)
    with pytest.raises(ShelfError, match="is a file, and is not a shelf; burn it, or remove it"):
        Shelf.refuse_to_replace(folder / "page.txt", instead="burn it")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=9,
)
books = st.fixed_dictionaries({"title": st.text(), "pages": st.integers(-(2**63) + 1, 2**63 - 1)})


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.lists(books)))
def test_a_value_of_the_expected_type_has_no_error(value: dict[str, list[Book]]) -> None:
    assert [*schema_errors(value, dict[str, list[Book]])] == []


@settings(deadline=None)
@given(json_values)
def test_any_other_value_has_an_error(value: Any) -> None:
    def is_book(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and value.keys() == {"title", "pages"}
            and type(value["title"]) is str
            and type(value["pages"]) is int
            and abs(value["pages"]) < 2**63
        )

    is_valid = type(value) is list and all(map(is_book, value))
    assert (not [*schema_errors(value, list[Book])]) == is_valid
    assert [*schema_errors(value, Any)] == []
