"""Documents of OBELICS: the order of the release, images without a stored copy, damaged rows."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from dreamkit import ConfigError, Document, DocumentError, Image, Text
from dreamkit_data.obelics import Obelics, ObelicsConfig
from dreamkit_digits import digits
from table_files import IMAGE, png, write_obelics, write_parquet, write_png


def opened(path: Path, **settings: Any) -> Obelics:
    return Obelics(ObelicsConfig(path, **settings))


def contents(document: Document) -> list[str | bytes]:
    return [
        segment.text if isinstance(segment, Text) else segment.picture.convert("RGB").tobytes()
        for segment in document
    ]


def pixels(index: int) -> bytes:
    return digits.load("train").image(index).tobytes()


def test_documents_are_texts_and_images_in_the_order_of_the_release(tmp_path: Path) -> None:
    file = write_obelics(tmp_path / "a.parquet", [[3, "A.\n\nB.", 4, 5, "C."], ["D. <image>", 6]])
    data = opened(file)
    assert len(data) == 2
    assert contents(data[0]) == [pixels(3), "A.\n\nB.", pixels(4), pixels(5), "C."]
    assert contents(data[1]) == ["D. <image>", pixels(6)]
    assert data[1].name == f"{file}:1"
    assert all((image.draw, image.read) == (True, True) for image in data[0].images)
    assert not any(image.draw for image in opened(file, draw=False)[0].images)
    assert data.notes == []


@pytest.mark.parametrize("kind", ["path", "struct", "struct of a path"])
def test_images_may_be_paths_or_structs(tmp_path: Path, kind: str) -> None:
    write_png(tmp_path, "images/3.png", 3)
    image = {
        "path": "images/3.png",
        "struct": {"bytes": png(3), "path": None},
        "struct of a path": {"bytes": None, "path": "images/3.png"},
    }[kind]
    images = pa.array([[image, None]], pa.list_(pa.string() if kind == "path" else IMAGE))
    file = write_parquet(tmp_path / "a.parquet", {"images": images, "texts": [[None, "x"]]})
    assert contents(opened(file)[0]) == [pixels(3), "x"]
    assert contents(opened(file, images=tmp_path)[0]) == [pixels(3), "x"]


def test_images_without_a_stored_copy_are_left_out_and_counted(tmp_path: Path) -> None:
    images = [["https://a.org/1.png", None, "3.png", None, None], [None, None, "", "3.png", None]]
    texts = [[None, "A", None, "B", None], ["C", None, "", None, "D"]]
    write_png(tmp_path, "3.png", 3)
    file = write_parquet(tmp_path / "a.parquet", {"images": images, "texts": texts})
    data = opened(file)
    assert contents(data[0]) == ["A", pixels(3), "B"]
    assert contents(data[1]) == ["C", pixels(3), "D"]
    assert data.notes == [f"{file}: left out: 3 of 5 images in the first 2 documents, without a stored copy"]


def test_texts_around_an_image_that_is_left_out_are_one(tmp_path: Path) -> None:
    file = write_obelics(tmp_path / "a.parquet", [["A", None, "B", 3, 4, "C", 5, "D"]])
    assert contents(opened(file)[0]) == ["A\n\nB", pixels(3), pixels(4), "C", pixels(5), "D"]
    assert contents(opened(file, max_images=1)[0]) == ["A\n\nB", pixels(3), "C\n\nD"]
    assert contents(opened(file, max_images=3, min_images=3)[0])[-1] == "D"


def test_a_page_whose_images_are_all_missing_is_its_text(tmp_path: Path) -> None:
    file = write_obelics(tmp_path / "a.parquet", [["A", 3], ["B", None, None], ["C"], [None]])
    data = opened(file)
    assert [contents(data[index]) for index in (1, 2)] == [["B"], ["C"]]
    with pytest.raises(DocumentError, match=":3: expected a text or a stored image, got none"):
        data[3]


def test_documents_with_fewer_stored_images_than_the_setting_are_bad_samples(tmp_path: Path) -> None:
    file = write_obelics(tmp_path / "a.parquet", [["A", 3], ["B", None, None], ["C"]])
    data = opened(file, min_images=1)
    assert contents(data[0]) == ["A", pixels(3)]
    message = ":1: expected at least 1 stored image, got 0; 2 images without a stored copy"
    with pytest.raises(DocumentError, match=re.escape(f"{file}{message}")):
        data[1]


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.integers(0, 20) | st.sampled_from(["A", "B\n\nC", "é"]) | st.none(), max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 3),
    st.none() | st.integers(1, 3),
)
def test_every_stored_place_is_in_the_document_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[Any]], rows: int, most: int | None
) -> None:
    folder = tmp_path_factory.mktemp("obelics")
    file = write_obelics(folder / "a.parquet", [*documents, [0]], rows=rows)
    data = opened(file, index=folder / "index", max_images=most)
    for index, places in enumerate(documents):
        images = [place for place in places if isinstance(place, int)][:most]
        texts = [place for place in places if isinstance(place, str)]
        if not images and not texts:
            continue
        document = data[index]
        assert [contents(Document((image,)))[0] for image in document.images] == list(map(pixels, images))
        parts = [part for segment in document if isinstance(segment, Text) for part in [segment.text]]
        assert "\n\n".join(parts) == "\n\n".join(texts)
        before = 0
        remaining = iter(images)
        for place in places:
            if isinstance(place, int) and next(remaining, None) is not None:
                before += 1
            elif isinstance(place, str) and place != "B\n\nC":
                assert any(
                    isinstance(segment, Text)
                    and place in segment.text.split("\n\n")
                    and sum(isinstance(each, Image) for each in document.segments[:number]) == before
                    for number, segment in enumerate(document.segments)
                )


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (
            [b"a", b"b"],
            ["x"],
            ":0: expected lists of one length, got 2 images and 1 text; each place has an image",
        ),
        ([b"a"], ["x"], ":0: place 0: expected an image or a text, got both"),
        (None, ["x"], ":0: images: expected a list, got null"),
        ([b"a"], None, ":0: texts: expected a list, got null"),
        ([None, b"a"], ["x", None], ":0: images[1]: cannot read the image"),
    ],
)
def test_a_bad_row_names_file_row_and_place(tmp_path: Path, images: Any, texts: Any, message: str) -> None:
    columns = {
        "images": pa.array([images, [png(0)]], pa.list_(pa.binary())),
        "texts": pa.array([texts, [None]], pa.list_(pa.string())),
    }
    file = write_parquet(tmp_path / "a.parquet", columns)
    data = opened(file)
    with pytest.raises(DocumentError, match=re.escape(f"{file}{message}")):
        data[0]
    assert contents(data[1]) == [pixels(0)]


def test_a_missing_file_is_a_bad_sample(tmp_path: Path) -> None:
    write_png(tmp_path, "3.png", 3)
    columns = {"images": [["3.png", None], ["4.png", None]], "texts": [[None, "x"], [None, "y"]]}
    data = opened(write_parquet(tmp_path / "a.parquet", columns))
    assert contents(data[0]) == [pixels(3), "x"]
    with pytest.raises(DocumentError, match=r":1: images\[0\]: no such image: .*4.png"):
        data[1]


def test_the_release_without_images_is_refused_at_the_start(tmp_path: Path) -> None:
    columns = {"images": [["https://a.org/1.png", None]] * 3, "texts": [[None, "x"]] * 3}
    file = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(
        DocumentError, match="expected bytes or paths of images, got none in 3 documents with 3 images"
    ):
        opened(file)
    with pytest.raises(DocumentError, match=r"column 'texts': expected a list of strings, got string"):
        opened(write_parquet(file, {"images": [["a"]], "texts": ["x"]}))
    with pytest.raises(DocumentError, match=r"nowhere: no such folder; correct 'images'"):
        opened(write_obelics(file, [[3]]), images=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"min_images": -1}, "min_images: expected at least 0, got -1"),
        ({"min_images": 3, "max_images": 2}, "max_images: expected at least 1 and min_images, got 2"),
        ({"max_images": 0, "min_images": 0}, "max_images: expected at least 1 and min_images, got 0"),
    ],
)
def test_bounds_that_no_document_can_meet_are_refused(more: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ObelicsConfig(Path("a"), **more)
