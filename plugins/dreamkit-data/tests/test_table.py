"""The data set `table`: pairs in Parquet, TSV and CSV, with captions by weight, bytes, paths and base64."""

import base64
import csv
import os
import pickle
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from dreamkit import ConfigError, DocumentError, Image, Registry, StorageError, Text
from dreamkit.recipe.loading import draft_recipe
from dreamkit_data.captions import choose_caption
from dreamkit_data.table import Table, TableConfig
from dreamkit_digits import digits
from table_files import IMAGE, name, png, write_pairs, write_parquet, write_png


def opened(path: Path | list[Path], **settings: Any) -> Table:
    return Table(TableConfig(path, **settings))


def shows(image: Image, index: int) -> bool:
    return image.picture.convert("RGB").tobytes() == digits.load("train").image(index).tobytes()


def write_text_table(path: Path, rows: list[list[str]], separator: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)
    return path


def test_rows_of_datasets_are_pairs_to_draw_or_to_read(tmp_path: Path) -> None:
    for shard in range(2):
        write_pairs(tmp_path / f"train-0000{shard}-of-00002.parquet", range(10 * shard, 10 * shard + 10))
    for path in (tmp_path, tmp_path / "train-*.parquet", tmp_path / "train-{00000..00001}-of-00002.parquet"):
        data = opened(path)
        assert len(data) == 20
        for index in (0, 9, 10, 19):
            text, image = data[index].segments
            assert text == Text(f"a {name(index)}")
            assert (image.draw, image.read, shows(image, index)) == (True, False, True)
    assert data[13].name == f"{tmp_path / 'train-00001-of-00002.parquet'}:3"
    image, text = opened(tmp_path, direction="read")[5].segments
    assert (text.text, image.draw, image.read, shows(image, 5)) == (f"a {name(5)}", False, True, True)


def encoded(index: int, alphabet: str) -> str:
    encode = base64.urlsafe_b64encode if alphabet == "addresses" else base64.b64encode
    return encode(png(index)).decode()


@pytest.mark.parametrize(
    "kind", ["bytes", "path", "absolute path", "base64", "addresses", "data URL", "struct path"]
)
def test_images_are_read_from_every_way_to_store_them(tmp_path: Path, kind: str) -> None:
    values: list[Any] = []
    for index in range(6):
        write_png(tmp_path, f"images/{index}.png", index)
        values.append(
            {
                "bytes": png(index),
                "path": f"images/{index}.png",
                "absolute path": str(tmp_path / f"images/{index}.png"),
                "base64": encoded(index, "standard"),
                "addresses": encoded(index, "addresses"),
                "data URL": f"data:image/png;base64,{encoded(index, 'standard')}",
                "struct path": {"bytes": None, "path": f"images/{index}.png"},
            }[kind]
        )
    more = {"base64": kind in ("base64", "addresses")}
    column = pa.array(values, IMAGE) if kind == "struct path" else values
    table = write_parquet(tmp_path / "a.parquet", {"image": column, "caption": ["x"] * 6})
    tables = [(table, {})]
    if kind not in ("bytes", "struct path"):
        rows = [[value, "x"] for value in values]
        tables.append((write_text_table(tmp_path / "a.tsv", [["image", "caption"], *rows], "\t"), {}))
        tables.append((write_text_table(tmp_path / "a.csv", [["image", "caption"], *rows], ","), {}))
        tables.append(
            (
                write_text_table(tmp_path / "b.tsv", rows, "\t"),
                {"header": False, "image": 0, "caption": 1},
            )
        )
    for path, settings in tables:
        data = opened(path, **more, **settings)
        assert all(shows(data[index].images[0], index) for index in range(6))
    if "path" in kind:
        assert all(shows(opened(table, images=tmp_path)[index].images[0], index) for index in range(6))


def test_a_table_that_pandas_would_write_keeps_quotes_tabs_and_lines(tmp_path: Path) -> None:
    caption = 'He said "hi",\n\tthen left.'
    for separator in ("\t", ","):
        rows = [["caption", "image"], [caption, encoded(0, "standard")]]
        file = write_text_table(tmp_path / "a.tsv", rows, separator)
        (document,) = opened(file, base64=True, quotes=True)
        assert document.text == caption


def test_captions_are_chosen_by_weight_among_those_of_the_row(tmp_path: Path) -> None:
    columns = {
        "image": [png(0)] * 4,
        "caption": ["alt", None, " ", "alt"],
        "long": [["a", "b"], ["a", "b"], [], None],
    }
    data = opened(write_parquet(tmp_path / "a.parquet", columns), caption={"caption": 1, "long": 3})
    assert [data[index].text for index in (0, 1, 3)] == ["alt", "a", "alt"]
    chosen = Counter(data.sample(0, random.Random(seed)).text for seed in range(800))
    assert {text: round(number / 100) for text, number in chosen.items()} == {"alt": 2, "a": 3, "b": 3}
    assert {data.sample(1, random.Random(seed)).text for seed in range(20)} == {"a", "b"}
    assert {data.sample(3, random.Random(seed)).text for seed in range(20)} == {"alt"}
    for read in (data.__getitem__, lambda index: data.sample(index, random.Random(0))):
        with pytest.raises(DocumentError, match=r"a.parquet:2: caption, long: expected a caption, got none"):
            read(2)


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 9), min_size=1),
    st.randoms(use_true_random=False),
    st.data(),
)
def test_a_choice_is_a_caption_and_a_function_of_the_random_numbers(
    weights: dict[str, float], choices: random.Random, data: st.DataObject
) -> None:
    value = st.none() | st.text(max_size=3) | st.lists(st.none() | st.text(max_size=3), max_size=2)
    captions = {name: data.draw(value) for name in weights}
    texts = [
        text.strip()
        for name in weights
        for text in (captions[name] if isinstance(captions[name], list) else [captions[name]])
        if text and text.strip()
    ]
    state = choices.getstate()
    if not texts:
        with pytest.raises(DocumentError, match="expected a caption"):
            choose_caption(captions, weights, "here", choices)
        return
    assert choose_caption(captions, weights, "here", None) == texts[0]
    chosen = choose_caption(captions, weights, "here", choices)
    assert chosen in texts
    choices.setstate(state)
    assert choose_caption(captions, weights, "here", choices) == chosen


@pytest.mark.parametrize(
    ("value", "more", "message"),
    [
        (None, {}, ":0: image: expected an image, got null"),
        (" ", {}, ":0: image: expected an image, got null"),
        ("missing.png", {}, ":0: image: no such image: "),
        (
            "https://a.org/x.jpg",
            {},
            ":0: image: expected an image or a path, got the address 'https://a.org/x.jpg'",
        ),
        ("../a.png", {"images": True}, ":0: image: expected a path inside 'images' ("),
        ("/etc/hostname", {"images": True}, ":0: image: expected a path inside 'images' ("),
        ("a" * 5000, {}, ":0: image: expected a path, got '"),
        ("a\0.png", {}, ":0: image: expected a path, got '"),
        ("AAA", {"base64": True}, ":0: image: expected an image in base64, got 'AAA' (string): "),
        ("ü", {"base64": True}, ":0: image: expected an image in base64, got 'ü' (string): "),
        ("AAAA", {"base64": True}, ":0: image: cannot read the image"),
        (b"", {}, ":0: image: expected an image, got an empty file"),
        (b"\x89PNG", {}, ":0: image: cannot read the image"),
        ({"bytes": None, "path": None}, {}, ":0: image: expected an image, got null"),
        ({"bytes": b"x", "path": "a.png"}, {}, ":0: image: cannot read the image"),
    ],
)
def test_a_bad_image_names_file_row_and_column(
    tmp_path: Path, value: Any, more: dict[str, Any], message: str
) -> None:
    kind = {str: pa.string(), bytes: pa.binary()}.get(type(value), IMAGE)
    columns = {"image": pa.array([value], kind), "caption": ["x"]}
    file = write_parquet(tmp_path / "tables" / "a.parquet", columns)
    write_png(tmp_path, "a.png", 0)
    if more.get("images"):
        more = {"images": tmp_path / "tables"}
    with pytest.raises(DocumentError, match=re.escape(f"{file}{message}")) as error:
        opened(file, **more)[0]
    assert not isinstance(error.value, StorageError)
    assert len(str(error.value)) < 1000


def test_a_blank_caption_names_file_line_and_column(tmp_path: Path) -> None:
    file = write_text_table(tmp_path / "a.tsv", [["image", "text"], ["a.png", " "]], "\t")
    with pytest.raises(DocumentError, match=f"{file}:2: text: expected a caption, got ' ' "):
        opened(file, caption="text")[0]


def test_the_memory_of_parquet_is_refused_for_text_tables(tmp_path: Path) -> None:
    text = write_text_table(tmp_path / "a.tsv", [["image", "caption"], ["a.png", "x"]], "\t")
    with pytest.raises(DocumentError, match=f"{text}: 'memory' is for Parquet, got a text table; remove it"):
        opened(text, memory=256)
    with pytest.raises(ConfigError, match="memory: expected at least 1 MiB, got 0"):
        TableConfig(tmp_path, memory=0)


def test_settings_that_do_not_fit_are_errors_at_the_start(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": [png(0)], "caption": ["x"]})
    with pytest.raises(
        DocumentError, match=f"{file}: 'images' is set, but the column 'image' has the images"
    ):
        opened(file, images=tmp_path)
    with pytest.raises(DocumentError, match=f"{file}: 'header' is for text tables, got Parquet; remove it"):
        opened(file, header=False)
    with pytest.raises(
        ConfigError, match="caption: expected another column than that of the image, got 'image'"
    ):
        TableConfig(tmp_path, caption={"image": 1, "b": 1})
    with pytest.raises(DocumentError, match="nowhere: no such folder; correct 'images' of the data set"):
        opened(write_pairs(file, range(3)), images=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"caption\.a: expected a positive number, got 0"):
        TableConfig(tmp_path, caption={"a": 0, "b": 1})
    with pytest.raises(ConfigError, match="expected one or more captions with their weights, got none"):
        TableConfig(tmp_path, caption={})
    write_text_table(tmp_path / "b.csv", [["image", "caption"], ["a", "b"]], ",")
    with pytest.raises(DocumentError, match=r"b.csv: cannot read the file as Parquet"):
        opened(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="pipe: expected a regular file"):
        opened(tmp_path / "pipe")


def test_a_fingerprint_changes_with_the_data_and_not_with_its_place(tmp_path: Path) -> None:
    one = opened(write_pairs(tmp_path / "a" / "x.parquet", range(9)))
    copy = opened(write_pairs(tmp_path / "b" / "y.parquet", range(9)))
    other = opened(write_pairs(tmp_path / "c" / "x.parquet", [*range(8), 100]))
    assert one.fingerprint() == copy.fingerprint() != other.fingerprint()
    rows = [["image", "caption"], [encoded(0, "standard"), "x"]]
    texts = [write_text_table(tmp_path / f"{n}.tsv", rows, "\t") for n in range(2)]
    more = write_text_table(tmp_path / "2.tsv", [*rows, rows[-1]], "\t")
    prints = [opened(file, base64=True).fingerprint() for file in (*texts, more)]
    assert prints[0] == prints[1] != prints[2]


def test_a_recipe_names_a_table(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a.parquet", range(3), alt=["x", "y", "z"])
    (tmp_path / "recipe.yaml").write_text(
        "extends: digits/stage1\n"
        "data:\n"
        "  - {name: table, path: a.parquet, caption: {caption: 1, alt: 2}, direction: read, weight: 2}\n"
        "  - name: table\n"
        "    path: [a.parquet]\n"
        "    images: .\n"
    )
    registry = Registry.load()
    recipe, problems = draft_recipe(str(tmp_path / "recipe.yaml"), (), registry)
    assert not problems
    tables = [registry.get("dataset", section.name)(section.config) for section in recipe.data]
    assert [len(table) for table in tables] == [3, 3]
    assert tables[0].captions == {"caption": 1, "alt": 2}
    assert pickle.loads(pickle.dumps(tables[1]))[2].text == f"a {name(2)}"
