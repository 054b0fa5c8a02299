"""Captions of COCO in its three forms: one document for each image, the form by content, damaged files."""

import errno
import json
import os
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from dreamkit import DocumentError, Image, StorageError, Text
from dreamkit_data import coco
from dreamkit_data.coco import Coco, CocoConfig
from dreamkit_digits import digits
from table_files import (
    coco_name,
    write_coco_captions,
    write_karpathy,
    write_narratives,
    write_png,
)

CAPTIONS = {139: ["A one.", "A small one."], 285: ["A two."], 7: ["A three.", "3", "three"]}
SPLITS = {139: "train", 285: "test", 7: "restval"}


def opened(path: Path | list[Path], **settings: Any) -> Coco:
    return Coco(CocoConfig(path, **settings))


def first_texts(data: Coco) -> list[str]:
    return [data[index].text for index in range(len(data))]


def shows(image: Image, index: int) -> bool:
    return image.picture.convert("RGB").tobytes() == digits.load("train").image(index).tobytes()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in CAPTIONS:
        write_png(tmp_path / "images", coco_name(number), number)
        write_png(tmp_path / "2014", f"val2014/{coco_name(number, 'val2014')}", number)
    return tmp_path / "images"


def test_an_image_is_one_document_to_draw_or_to_read(tmp_path: Path, images: Path) -> None:
    file = write_coco_captions(tmp_path / "a.json", CAPTIONS)
    data = opened(file, images=images)
    assert len(data) == 3
    for index, (number, captions) in enumerate(CAPTIONS.items()):
        text, image = data[index].segments
        assert (text, image.draw, image.read) == (
            Text(captions[-1]),
            True,
            False,
        )  # the file has them backwards
        assert shows(image, number)
        assert data[index].name == f"{file}!{number}"
    image, text = opened(file, images=images, direction="read")[1].segments
    assert (text, image.draw, image.read) == (Text("A two."), False, True)


@pytest.mark.parametrize("name", ["captions.json", "dataset_coco.json", "x.jsonl"])
def test_the_content_shows_the_format_whatever_the_name(tmp_path: Path, images: Path, name: str) -> None:
    file = write_coco_captions(tmp_path / name, CAPTIONS)
    assert first_texts(opened(file, images=images)) == ["A small one.", "A two.", "three"]
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    assert first_texts(opened(file, images=images)) == ["A small one.", "A two.", "three"]
    file = write_karpathy(tmp_path / name, CAPTIONS, SPLITS)
    assert first_texts(opened(file, images=tmp_path / "2014", split="train")) == ["A one."]
    assert first_texts(opened(file, images=tmp_path / "2014" / "val2014", split=["restval", "train"])) == [
        "A one.",
        "A three.",
    ]
    narratives = [(7, "In this image ..."), (139, "We can see ..."), (7, "There is ...")]
    file = write_narratives(tmp_path / name, narratives)
    data = opened(file, images=tmp_path / "2014")
    assert first_texts(data) == ["In this image ...", "We can see ..."]
    assert shows(data[0].images[0], 7)


def test_a_caption_is_chosen_by_the_random_choices_alone(tmp_path: Path, images: Path) -> None:
    shards = [
        write_narratives(tmp_path / "0.jsonl", [(7, "a"), (139, "b")]),
        write_narratives(tmp_path / "1.jsonl", [(285, "c"), (7, "d"), (7, "e")]),
    ]
    data = opened(tmp_path / "{0..1}.jsonl", images=images)
    assert first_texts(data) == ["a", "b", "c"]
    chosen = [data.sample(0, random.Random(seed)).text for seed in range(300)]
    assert Counter(chosen).keys() == {"a", "d", "e"}
    assert min(Counter(chosen).values()) > 70
    assert [data.sample(0, random.Random(seed)).text for seed in range(300)] == chosen
    assert data.sample(1, random.Random(0)).text == "b"
    assert opened(shards, images=images).fingerprint() == data.fingerprint()


captions = st.text(max_size=9).filter(lambda text: "\0" not in text)


@settings(max_examples=40)
@given(
    st.dictionaries(st.integers(0, 10**6), st.lists(captions, max_size=3), min_size=1, max_size=6), st.data()
)
def test_documents_are_the_images_with_captions(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[int, list[str]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("coco")
    splits = {number: data.draw(st.sampled_from(["train", "val"])) for number in texts}
    splits[next(iter(texts))] = "train"
    expected = {number: [text.strip() for text in each if text.strip()] for number, each in texts.items()}
    expected = {number: each for number, each in expected.items() if each}
    narratives = [(number, text) for number, each in texts.items() for text in each] or [(0, "")]
    order = data.draw(st.permutations(narratives))
    files: dict[Path, tuple[dict[str, Any], dict[int, Counter[str]]]] = {
        write_coco_captions(folder / "a", texts): ({}, {n: Counter(each) for n, each in expected.items()}),
        write_karpathy(folder / "b", texts, splits): (
            {"split": "train"},
            {n: Counter(each) for n, each in expected.items() if splits[n] == "train"},
        ),
        write_narratives(folder / "c", order): (
            {},
            {n: Counter(expected[n]) for n in dict.fromkeys(n for n, text in order if text.strip())},
        ),
    }
    for file, (more, images) in files.items():
        try:
            found = opened(file, images=folder, index=folder / "index", **more)
        except DocumentError as error:
            assert not images
            assert "no captions" in str(error)
            continue
        records = [found._records[a:b] for a, b in zip(found._bounds, found._bounds[1:], strict=False)]
        assert [found._record(numbers[0])[1].id for numbers in records] == list(images)
        assert [
            Counter(text for number in numbers for text in found._record(number)[1].captions)
            for numbers in records
        ] == list(images.values())


def test_a_second_start_reads_no_file(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_coco_captions(tmp_path / "a.json", CAPTIONS)
    opened(file, images=images)
    monkeypatch.setattr(coco, "read_images", None)
    data = pickle.loads(pickle.dumps(opened(file, images=images)))
    assert first_texts(data) == ["A small one.", "A two.", "three"]


def test_images_without_captions_are_left_out_with_a_note(tmp_path: Path, images: Path) -> None:
    file = write_coco_captions(tmp_path / "a.json", CAPTIONS | {8: [], 9: [" "]})
    data = opened(file, images=images)
    assert len(data) == 3
    assert data.notes == [f"{file}: left out: 2 images without a caption"]


def test_an_image_that_is_missing_is_a_bad_sample(tmp_path: Path, images: Path) -> None:
    file = write_coco_captions(tmp_path / "a.json", CAPTIONS)
    (images / coco_name(285)).unlink()
    data = opened(file, images=images)
    assert data[0].text == "A small one."
    with pytest.raises(DocumentError, match=f"{file}!285: no such image: {images / coco_name(285)}"):
        data[1]


def test_an_image_that_cannot_be_reached_is_not_missing(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(write_coco_captions(tmp_path / "a.json", CAPTIONS), images=images)
    read = os.stat

    def fail(path: Any, **settings: Any) -> os.stat_result:
        if str(path).endswith(coco_name(139)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        with pytest.raises(
            StorageError, match=f"{coco_name(139)}: cannot reach the image: Stale file handle"
        ):
            data[0]
    assert shows(data[0].images[0], 139)


def edited(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        value = json.loads(write_coco_captions(path, CAPTIONS).read_text())
        change(value)
        path.write_text(json.dumps(value))

    return write


@pytest.mark.parametrize("folder", ["x/..", "x/", "C:", "x/..\\..", "x/\0"])
def test_the_folder_of_an_address_cannot_lead_out_of_the_images(tmp_path: Path, folder: str) -> None:
    write_png(tmp_path, coco_name(139), 139)
    (tmp_path / "images" / "x").mkdir(parents=True)
    url = f"http://{folder}/{coco_name(139)}"
    file = tmp_path / "a.json"
    edited(lambda value: value["images"][0].update(coco_url=url))(file)
    data = opened(file, images=tmp_path / "images")
    assert list(data._record(0)[1].names) == [coco_name(139)]
    with pytest.raises(DocumentError, match=f"no such image: {tmp_path / 'images' / coco_name(139)}"):
        data[0]


def edited_karpathy(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        value = json.loads(write_karpathy(path, CAPTIONS, SPLITS).read_text())
        change(value["images"][0])
        path.write_text(json.dumps(value))

    return write


def lines(*records: Any) -> Callable[[Path], None]:
    return lambda path: (path.write_text("".join(json.dumps(record) + "\n" for record in records)), None)[1]


@pytest.mark.parametrize(
    ("write", "more", "message"),
    [
        (
            lambda path: write_karpathy(path, CAPTIONS, SPLITS),
            {},
            ": name the splits to read, such as split: [train, "
            "restval]; splits: train (1), test (1), restval (1)",
        ),
        (
            lambda path: write_karpathy(path, CAPTIONS, SPLITS),
            {"split": ["train", "restvall"]},
            ": unknown split 'restvall'; did you mean 'restval'?",
        ),
        (
            lambda path: write_coco_captions(path, CAPTIONS),
            {"split": "train"},
            ": 'split' is set, but COCO captions have",
        ),
        (
            edited(lambda value: value["images"][1].update(file_name="../a.jpg")),
            {},
            ": images[1]: file_name: expected the name of a file in the folder of images, got '../a.jpg' (string)",
        ),
        (
            edited(lambda value: value["images"][1].update(file_name="/a.jpg")),
            {},
            ": images[1]: file_name: expected",
        ),
        (
            edited(lambda value: value["images"][1].update(file_name="")),
            {},
            ": images[1]: file_name: expected",
        ),
        (
            edited(lambda value: value["images"][1].update(id=139)),
            {},
            ": images[1]: expected each id once, got 139 twice",
        ),
        (edited(lambda value: value["images"][1].pop("id")), {}, ": images[1]: missing 'id'; known: "),
        (
            edited(lambda value: value["annotations"][2].update(image_id=1)),
            {},
            ": annotations[2]: image_id: expected the id of an image, got 1",
        ),
        (
            edited(lambda value: value["annotations"][2].update(image_id="1")),
            {},
            ": annotations[2]: image_id: expected an integer of at most 12 digits, got '1' (string)",
        ),
        (
            edited(lambda value: value["annotations"][2].pop("caption")),
            {},
            ": annotations[2]: missing 'caption'",
        ),
        (
            edited(lambda value: value["annotations"][2].update(caption=5)),
            {},
            ": annotations[2]: caption: expected a string, got 5 (integer)",
        ),
        (
            edited(lambda value: value.update(annotations=5)),
            {},
            ": annotations: expected a list, got 5 (integer)",
        ),
        (
            edited(lambda value: value.update(images=[5])),
            {},
            ": images[0]: expected a record {...}, got 5 (integer)",
        ),
        (
            edited_karpathy(lambda image: image.update(filepath="/x")),
            {"split": "train"},
            ": images[0]: filepath: expected",
        ),
        (
            edited_karpathy(lambda image: image.update(sentences=None)),
            {"split": "train"},
            ": images[0]: sentences: expected a list, got null",
        ),
        (
            edited_karpathy(lambda image: image.update(sentences=[{}])),
            {"split": "train"},
            ": images[0]: sentences[0]: missing 'raw'",
        ),
        (
            lines({"image_id": "7", "caption": "a"}, {"image_id": "x", "caption": "a"}),
            {},
            ":2: image_id: expected an integer of at most 12 digits, got 'x' (string)",
        ),
        (lines({"image_id": "7", "caption": "a"}, {"image_id": "7"}), {}, ":2: missing 'caption'"),
        (
            lines({"image_id": "7", "caption": "a"}, [1]),
            {},
            ":2: expected a record {...}, got a list of length 1",
        ),
        (
            lines({"image_id": "7", "caption": "a", "dataset_id": "Flickr30k"}),
            {},
            ":1: dataset_id: expected mscoco_train2017 or mscoco_val2017, got 'Flickr30k' (string)",
        ),
        (
            lambda path: path.write_text('{"image_id": 7, "caption": "a"}\n{"image_id"'),
            {},
            ":2: invalid JSON: ",
        ),
        (
            lines({"image": "a.png", "caption": "a"}),
            {},
            ": expected the keys images and annotations of COCO's captions",
        ),
        (lambda path: path.write_text("[" * 100_000), {}, ": invalid JSON: "),
        (lambda path: path.write_bytes(b"\xff\xfe{"), {}, ": invalid JSON: "),
        (lambda path: path.write_text(""), {}, ": invalid JSON: Expecting value (line 1, column 1)"),
        (lines({"images": [], "annotations": []}), {}, ": no captions; correct the path of the data set"),
    ],
)
def test_files_that_do_not_fit_are_errors_at_the_start(
    tmp_path: Path, write: Callable[[Path], Any], more: dict[str, Any], message: str
) -> None:
    file = tmp_path / "a.json"
    write(file)
    with pytest.raises(DocumentError, match=re.escape(f"{file}{message}")):
        opened(file, **more)


def test_files_of_two_formats_are_refused(tmp_path: Path) -> None:
    write_coco_captions(tmp_path / "0.json", CAPTIONS)
    write_narratives(tmp_path / "1.json", [(7, "a")])
    with pytest.raises(
        DocumentError, match="expected files of one format, got COCO captions and Localized Narratives"
    ):
        opened(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="pipe: expected a regular file"):
        opened(tmp_path / "pipe")


KEYS = [
    *("images", "annotations", "id", "image_id", "caption", "file_name"),
    *("filename", "filepath", "split", "sentences", "raw"),
]
scalars = st.sampled_from(["train", "a.jpg", "7", "\ud800", ""]) | st.floats() | st.integers(-2, 2)
json_values = st.recursive(
    st.none() | st.booleans() | scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(
    st.lists(json_values, min_size=1, max_size=2),
    st.fixed_dictionaries({"images": json_values, "annotations": json_values}),
    st.sampled_from([None, "train"]),
)
def test_any_json_is_images_or_an_error_with_the_name_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], captions: Any, split: str | None
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for number, content in enumerate([values, [captions], [{"images": values}]]):
        file = folder / f"{number}.json"
        file.write_text("\n".join(map(json.dumps, content)))
        try:
            data = opened(file, split=split, index=folder / "index")
        except DocumentError as error:
            assert str(file) in str(error)
            continue
        for index in range(len(data)):
            with pytest.raises(DocumentError, match=f"{file}!"):  # there are no images
                data[index]
