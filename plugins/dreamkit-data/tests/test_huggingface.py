"""Rows that the library `datasets` saved, compared with the library's own reading."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from PIL import ImageChops

from dreamkit import ConfigError, Document, DocumentError, Image, Text
from dreamkit.testing import contracts
from dreamkit_data.huggingface import HuggingFace, HuggingFaceConfig
from dreamkit_data.templates import Column, Template
from table_files import name, png

COUNT = 5


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    columns = {
        "image": [{"bytes": png(index), "path": f"{index}.png"} for index in range(COUNT)],
        "pages": [[{"bytes": png(index), "path": None}] * (index % 3) for index in range(COUNT)],
        "name": [name(index) for index in range(COUNT)],
        "number": list(range(COUNT)),
        "box": [[1, 2]] * COUNT,
        "note": [None, " ", "c", "d", "e"],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "pages": datasets.List(datasets.Image()),
            "name": datasets.Value("string"),
            "number": datasets.Value("int32"),
            "box": datasets.List(datasets.Value("int64")),
            "note": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(columns, features)


@pytest.fixture(scope="module")
def folder(rows: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    rows.save_to_disk(folder / "rows", num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([3])}).save_to_disk(folder / "splits")
    return folder


def read(folder: Path, template: str, **settings: Any) -> HuggingFace:
    return HuggingFace(HuggingFaceConfig(folder / "rows", template, **settings))


def test_rows_are_those_that_the_library_reads(folder: Path, rows: datasets.Dataset) -> None:
    data = pickle.loads(pickle.dumps(read(folder, "{{{number}}} {image} is {name}.")))
    assert len(data) == COUNT
    for index in range(COUNT):
        before, image, after = data[index].segments
        assert before == Text(f"{{{index}}}") and after == Text(f"is {name(index)}.")
        assert isinstance(image, Image) and image.read and not image.draw
        expected = rows[index]["image"]
        assert ImageChops.difference(image.picture.convert("RGB"), expected.convert("RGB")).getbbox() is None
        assert data[index].name == f"{folder}/rows: row {index}"


def test_a_drawn_image_at_the_end_is_not_read_back(folder: Path) -> None:
    (text, image) = read(folder, "{name} {image}", draw=["image"])[1]
    assert isinstance(image, Image) and (image.draw, image.read, text.text) == (True, False, name(1))
    (image, _) = read(folder, "{image} {name}", draw=["image"])[1]
    assert isinstance(image, Image) and (image.draw, image.read) == (True, True)


def test_an_answer_makes_a_conversation(folder: Path) -> None:
    document: Document = read(folder, "{image} What is it?", answer="A {name}.")[2]
    assert [segment.role for segment in document] == ["user", "user", "assistant"]
    assert document.text == f"What is it? A {name(2)}."


def test_a_list_of_images_stands_in_its_place(folder: Path) -> None:
    data = read(folder, "{name}: {pages} the end")
    assert [len(data[index].images) for index in range(COUNT)] == [0, 1, 2, 0, 1]
    assert data[0].text == f"{name(0)}:  the end"


@pytest.mark.parametrize(
    ("template", "index", "message"),
    [
        ("{note}", 0, "row 0: column 'note': expected a value, got null"),
        ("{note}", 1, "row 1: expected a text or an image, got blank columns"),
    ],
)
def test_a_row_without_a_value_is_a_bad_sample(folder: Path, template: str, index: int, message: str) -> None:
    data = read(folder, template)
    with pytest.raises(DocumentError, match=message):
        data[index]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{nam}"}, r"rows: missing column 'nam'; did you mean 'name'"),
        ({"template": "{box}"}, "column 'box': expected texts, numbers or images, got List"),
        (
            {"template": "{name}", "draw": ["name"]},
            "draw: expected columns of images in the template, got 'name'",
        ),
        ({"template": "{name}", "split": "train"}, "expected a data set with splits, got one without"),
        ({"template": "{name}", "path": "splits"}, "expected 'split' to be one of train, test, got none"),
        ({"template": "{name}", "path": "splits", "split": "x"}, "one of train, test, got 'x'"),
        ({"template": "{name}", "path": "missing"}, "missing: no such folder; correct the path"),
        ({"template": "{name}", "path": "."}, "cannot read the data set: .*; write it with save_to_disk"),
    ],
)
def test_the_error_of_a_setting_names_the_folder(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    path = folder / settings.pop("path", "rows")
    with pytest.raises(DocumentError, match=message):
        HuggingFace(HuggingFaceConfig(path, **settings))


def test_a_split_is_read_alone(folder: Path) -> None:
    data = HuggingFace(HuggingFaceConfig(folder / "splits", "{name}", split="test"))
    assert [data[0].text] == [name(3)] and len(data) == 1


def test_a_label_is_the_name_of_its_class(tmp_path: Path) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict({"label": [1, 0, -1]}, features).save_to_disk(tmp_path / "rows")
    data = pickle.loads(pickle.dumps(read(tmp_path, "a {label}")))
    assert [data[0].text, data[1].text] == ["a dog", "a cat"]
    with pytest.raises(
        DocumentError, match="row 2: column 'label': expected the number of one of 2 classes, got -1"
    ):
        data[2]


def test_text_that_is_not_utf8_is_a_bad_sample(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"b\xe4d"], pa.binary()).view(pa.string())
    datasets.Dataset(pa.table({"name": texts})).save_to_disk(tmp_path / "rows")
    data = read(tmp_path, "{name}")
    assert data[0].text == "good"
    with pytest.raises(DocumentError, match=r"rows: row 1: cannot read the row: .*utf-8"):
        data[1]


@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["a", "b c", "ü"]).map(Column)), max_size=6))
def test_a_template_has_the_pieces_that_were_written(pieces: list[str | Column]) -> None:
    written = "".join(
        f"{{{piece.name}}}" if isinstance(piece, Column) else piece.replace("{", "{{").replace("}", "}}")
        for piece in pieces
    )
    template = Template(written)
    assert (template.problem is None) == any(isinstance(piece, Column) for piece in pieces)

    def joined(pieces: list[str | Column]) -> list[str | Column]:
        result: list[str | Column] = []
        for piece in pieces:
            if isinstance(piece, str) and result and isinstance(result[-1], str):
                result[-1] += piece
            elif piece != "":
                result.append(piece)
        return result

    assert joined(template.pieces) == joined(pieces)


@pytest.mark.parametrize("text", ["a {name", "name}", "{}", "{a{b}}", "no column"])
def test_another_text_is_no_template(text: str) -> None:
    with pytest.raises(ConfigError, match=r"template: expected .*\{column\}"):
        HuggingFaceConfig(Path("rows"), text)


@contracts.parametrize("dataset", contracts.tiny_dataset(HuggingFace))
def test_contract(check) -> None:
    check()
