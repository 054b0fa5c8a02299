"""Settings of readers that fit no sample: the message has the names that the samples have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamkit import Dataset, Document, DocumentError, Image, Text
from dreamkit_data import first_names
from dreamkit_data.coco import Coco, CocoConfig
from dreamkit_data.first_names import FirstNames, unknown_lines
from dreamkit_data.member_records import Bounds
from dreamkit_data.mmc4 import MMC4, MMC4Config
from dreamkit_data.table import Table, TableConfig
from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits import digits
from tar_files import digit_metadata, write_img2dataset, write_mmc4_lines, write_tar

TEXTS = "txt, json:url, json:caption, json:key, json:status, json:exif, json:sha256"
NUMBERS = "width, height, original_width, original_height"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"caption": "tx"}, f"no caption 'tx' in the first samples, which have {TEXTS}; did you mean 'txt'?"),
        ({"caption": "captions"}, f"no caption 'captions' {{}}{TEXTS}; did you mean 'json:caption'?"),
        ({"caption": "json:captoin"}, f"no caption 'json:captoin' {{}}{TEXTS}; did you mean 'json:caption'?"),
        ({"caption": "json:alt"}, f"no caption 'json:alt' {{}}{TEXTS}"),
        ({"caption": "json:width"}, f"no caption 'json:width' {{}}{TEXTS}"),
        ({"filters": {"widht": Bounds(0)}}, f"no number 'widht' {{}}{NUMBERS}; did you mean 'width'?"),
        ({"filters": {"caption": Bounds(0)}}, f"no number 'caption' {{}}{NUMBERS}"),
    ],
)
def test_a_setting_of_no_sample_is_refused_with_the_names_of_the_samples(
    tmp_path: Path, settings: dict[str, Any], line: str
) -> None:
    write_img2dataset(tmp_path, [[digit_metadata(n) for n in range(3)]])
    with pytest.raises(DocumentError) as error:
        Tars(TarsConfig(tmp_path, **settings))
    message = str(error.value)
    assert message.endswith(f"; {line.format('in the first samples, which have ')}")
    assert message.startswith(f"{tmp_path}: no samples with an image and a caption; left out: 3 samples with")
    assert message.count(str(tmp_path)) == 1


def test_one_wrong_caption_of_several_is_a_note(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, [[digit_metadata(n) for n in range(3)]])
    for _ in range(2):  # indexes it, then reads the index
        data = Tars(TarsConfig(tmp_path, caption={"txt": 1.0, "json:caption": 1.0, "json:alt text": 1.0}))
        assert len(data) == 3
        assert data.notes == [
            f"{tmp_path}: no caption 'json:alt text' in the first samples, which have {TEXTS}"
        ]


def test_a_name_in_a_single_file_is_known(tmp_path: Path) -> None:
    rows = [[digit_metadata(0)], [digit_metadata(1, alt="a", score=1)]]
    write_img2dataset(tmp_path, rows)
    data = Tars(TarsConfig(tmp_path, caption={"txt": 1.0, "json:alt": 1.0}, filters={"score": Bounds(0)}))
    assert [document.text for document in data] == [rows[1][0]["caption"]]
    assert data.notes == [
        f"{tmp_path}: left out: 1 sample without a number as 'score', which has a filter, such as "
        "00000.tar!000000000"
    ]


def test_names_are_few_and_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_names, "FIRST", 2)
    names = FirstNames()
    names.add(["txt"], {"\x1b[2J": "a", "k" * 81: "a", "none": None, "true": True, "list": [], "n": 1})
    names.add([], {str(number): 1.5 for number in range(100)})
    names.add(["late"], {"late": 1})
    facts = names.facts()
    assert list(facts["names"]["texts"]) == ["txt", "json:\x1b[2J"] and facts["names"]["samples"] == 2
    assert facts["names"]["numbers"] == ["n", *(str(number) for number in range(49))]
    (line,) = unknown_lines([facts], ["late"], [])
    assert line == "no caption 'late' in the first samples, which have txt, json:\\x1b[2J"
    assert unknown_lines([FirstNames().facts()], ["txt"], ["width"]) == []


def mmc4_tar(folder: Path) -> Dataset:
    record = {"texts_list": ["a"], "image_info": []}
    write_tar(folder / "a.tar", [("0.json", json.dumps(record).encode())])
    return MMC4(MMC4Config(folder / "a.tar"))


def mmc4_lines(folder: Path, **settings: Any) -> Dataset:
    document = Document((Image(digits.load("train").image(0)), Text("a")))
    path = write_mmc4_lines(folder / "a.jsonl", [document, document])
    return MMC4(MMC4Config(path, **settings))


def mmc4_elsewhere(folder: Path) -> Dataset:
    (folder / "other").mkdir()
    return mmc4_lines(folder, images=folder / "other")


def coco(
    folder: Path, *, caption: str = "caption", annotations: str = "annotations", text: str = "a"
) -> Dataset:
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        annotations: [{"image_id": 1, caption: text}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return Coco(CocoConfig(folder / "a.json"))


def tsv(folder: Path) -> Dataset:
    (folder / "a.tsv").write_text("image\tcaption\nx.png\ta\n")
    return Table(TableConfig(folder / "a.tsv", caption="captoin"))


@pytest.mark.parametrize(
    ("open_set", "message"),
    [
        (mmc4_tar, "missing 'text_list'; did you mean 'texts_list'?"),
        (
            lambda folder: mmc4_lines(folder, min_similarity=0.9),
            "no documents with images; left out: 2 documents without an image whose matched_sim is at least "
            "min_similarity (0.9), such as a.jsonl:1",
        ),
        (mmc4_elsewhere, "2 images not in its folder, such as a.jsonl:1: 000000000000.png"),
        (mmc4_elsewhere, "other; correct 'images' of the data set"),
        (lambda folder: coco(folder, caption="captoin"), "missing 'caption'; did you mean 'captoin'?"),
        (lambda folder: coco(folder, annotations="anotations"), "'annotations'; did you mean 'anotations'?"),
        (lambda folder: coco(folder, text=" "), "no captions; left out: 1 image without a caption"),
        (tsv, "header: false and name columns by their numbers from 0; did you mean 'caption'?"),
    ],
)
def test_other_readers_have_the_nearest_name_or_the_reason(
    tmp_path: Path, open_set: Callable[[Path], Dataset], message: str
) -> None:
    with pytest.raises(DocumentError) as error:
        open_set(tmp_path)
    assert message in str(error.value) and "?;" not in str(error.value)
