"""The pictures of docs/data.md show what the readers make of samples today, each in the section of its format."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from data_pictures import FORMATS, MOST_BYTES, path, picture

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMKIT_CACHE_FOLDER", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", FORMATS)
def test_the_stored_picture_is_that_of_the_code(name: str, tmp_path: Path) -> None:
    (folder := tmp_path / name).mkdir()
    stored = path(name).read_text(encoding="utf-8")
    assert stored == picture(name, folder), "rewrite them with: python tests/helpers/data_pictures.py"
    assert len(stored.encode()) <= MOST_BYTES
    ElementTree.fromstring(stored)


@pytest.mark.parametrize("name", FORMATS)
def test_the_section_of_a_format_has_its_picture_and_recipe(name: str) -> None:
    (section,) = [each for each in SECTIONS if f"(images/{path(name).name})" in each]
    assert re.search(rf"!\[[^]]{{20,}}\]\(images/{path(name).name}\)", section), (
        "no text in place of the picture"
    )
    assert re.search(rf"^ *- \{{?name: {name}\b", section, re.MULTILINE)


def test_no_picture_is_left_of_an_earlier_format() -> None:
    assert {file.name for file in path("tars").parent.glob("data-*.svg")} == {
        path(name).name for name in FORMATS
    }
