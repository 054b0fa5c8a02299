"""The data set `tars`: pairs in tars as img2dataset writes them, chosen by captions and filters."""

import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from dreamkit import ConfigError, DocumentError, Image, Registry, Text
from dreamkit.recipe.loading import draft_recipe
from dreamkit_data.member_records import Bounds
from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits import digits
from tar_files import digit_metadata, digit_sample, write_img2dataset, write_tar
from tar_sets import SHARDS, open_tars, sample


def pixels(image: Image) -> np.ndarray:
    return np.asarray(image.picture.convert("RGB"))


def test_documents_are_the_pairs_of_img2dataset_in_order(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, SHARDS)
    for direction in ("draw", "read"):
        data = open_tars(tmp_path / "{00000..00002}.tar", direction=direction)
        assert len(data) == 30 and data.notes == []
        for number, document in enumerate(data[n] for n in range(30)):
            text, image = document.segments if direction == "draw" else reversed(document.segments)
            assert text == Text(digit_metadata(number)["caption"])
            assert (image.read, image.draw) == ((False, True) if direction == "draw" else (True, False))
            assert (pixels(image) == digits.load("train").pixels[number]).all()
            assert document.name == f"{tmp_path}/0000{number // 10}.tar!{number:09}"


@pytest.mark.parametrize("pattern", [".", "*.tar", "0000{0,1,2}.tar", "{00000..00002}.tar"])
def test_a_folder_a_glob_and_braces_name_the_same_tars(tmp_path: Path, pattern: str) -> None:
    write_img2dataset(tmp_path, SHARDS)
    names = [document.name for document in open_tars(tmp_path / pattern)]
    assert names == [f"{tmp_path}/0000{n // 10}.tar!{n:09}" for n in range(30)]
    assert names == [document.name for document in open_tars([tmp_path / f"0000{n}.tar" for n in range(3)])]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_images_of_all_formats_are_read(tmp_path: Path, suffix: str) -> None:
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}.get(suffix.lower(), "PNG")
    write_tar(tmp_path / "a.tar", digit_sample(digit_metadata(3), kind, suffix))
    (document,) = list(open_tars(tmp_path / "a.tar"))
    assert document.images[0].picture.size == (16, 16)


def test_a_changed_tar_and_other_settings_are_indexed_anew(tmp_path: Path) -> None:
    (path,) = write_img2dataset(tmp_path, SHARDS[:1])
    assert len(open_tars(path)) == 10
    assert len(open_tars(path, filters={"original_width": Bounds(least=1)}, caption="json:caption")) == 10
    with pytest.raises(DocumentError, match=r"10 samples by the filter of 'width' \(least 17\)"):
        open_tars(path, filters={"width": Bounds(least=17)})
    write_img2dataset(tmp_path, [[digit_metadata(n) for n in range(7)]])
    assert len(open_tars(path)) == 7


def test_a_caption_of_json_and_a_choice_by_weight(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            *sample("0", jpg=True, txt=" first ", json={"alt": "second", "empty": " "}),
            *sample("1", jpg=True, json={"alt": "only"}),
            *sample("2", jpg=True, txt="text\n"),
        ],
    )
    path = tmp_path / "a.tar"
    assert [d.text for d in open_tars(path, caption="json:alt")] == ["second", "only"]
    assert [d.text for d in open_tars(path)] == ["first", "text"]
    data = open_tars(path, caption={"txt": 1.0, "json:alt": 3.0, "json:empty": 9.0})
    assert [document.text for document in data] == ["first", "only", "text"]
    choices = random.Random(0)
    texts = Counter(data.sample(0, choices).text for _ in range(400))
    assert set(texts) == {"first", "second"} and 70 < texts["first"] < 130
    assert data.sample(0, random.Random(5)) == data.sample(0, random.Random(5))
    assert data.sample(1, choices).text == "only" and data.sample(2, choices).text == "text"


def test_samples_without_image_caption_or_success_are_left_out_with_counts(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            *sample("good", jpg=True, txt="a"),
            *sample("blank", jpg=True, txt=" \n"),
            *sample("mark", jpg=True, txt=" \ufeff\r\n"),
            *sample("space", jpg=True, txt="\u00a0\n"),
            *sample("mute", jpg=True, json={"status": "success"}),
            *sample("failed", jpg=True, txt="a", json={"status": "failed_to_download"}),
            *sample("text", txt="a"),
            *sample("two", jpg=True, png=True, txt="a"),
            *sample("damaged", jpg=True, txt="a", json="{"),
            ("__meta__.json", b"{"),
            (".hidden", b""),
            ("README", b""),
        ],
    )
    data = open_tars(tmp_path)
    assert [document.text for document in data] == ["a"]
    assert Counter(data.notes) == Counter(
        [
            f"{tmp_path}: left out: 4 samples without a caption, such as a.tar!blank",
            f"{tmp_path}: left out: 1 sample whose download failed ('status'), such as a.tar!failed",
            f"{tmp_path}: left out: 1 sample with no image, such as a.tar!text",
            f"{tmp_path}: left out: 1 sample with 2 images, such as a.tar!two",
            f"{tmp_path}: left out: 1 sample with a damaged .json, such as a.tar!damaged",
        ]
    )
    assert data.notes == open_tars(tmp_path).notes  # from the index


def test_filters_leave_only_survivors_in_the_index(tmp_path: Path) -> None:
    rows = [digit_metadata(n, width=100 * n, similarity=n / 10) for n in range(8)]
    rows[7]["width"] = None
    write_img2dataset(tmp_path, [rows])
    filters = {"width": Bounds(least=200), "similarity": Bounds(0.3, 0.5)}
    data = open_tars(tmp_path, filters=filters)
    assert [document.name[-1] for document in data] == ["3", "4", "5"]
    counts = {note.split("left out: ")[1].split(", such")[0] for note in data.notes}
    assert counts == {
        "2 samples by the filter of 'width' (least 200)",
        "2 samples by the filter of 'similarity' (least 0.3, most 0.5)",
        "1 sample without a number as 'width', which has a filter",
    }


def test_without_any_sample_the_error_has_the_reasons(tmp_path: Path) -> None:
    images, texts = [], []
    for number in range(3):
        image, _, text = digit_sample(digit_metadata(number))
        images.append(image)
        texts.append(text)
    write_tar(tmp_path / "apart.tar", [*images, *texts])
    with pytest.raises(DocumentError, match=r"no samples with an image and a caption; .*left out: 3 samples"):
        open_tars(tmp_path / "apart.tar")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(
        st.lists(
            st.tuples(st.booleans(), st.sampled_from([None, "", "a b"]), st.sampled_from([None, "", "c"])),
            max_size=5,
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_tars_have_the_samples_with_image_and_caption(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[tuple[bool, str, str]]], form: int
) -> None:
    folder, expected = tmp_path_factory.mktemp("tars"), []
    for shard, each in enumerate(shards):
        members: list[tuple[str, bytes]] = []
        for number, (has_image, text, alt) in enumerate(each):
            key = f"{'deep/' * (number % 3)}{'k' * 60 * (number % 2)}{number}"
            parts = {"jpg": True} if has_image else {}
            parts |= {} if alt is None else {"json": {"alt": alt}}
            parts |= {} if text is None else {"txt": text}
            members += sample(key, **parts)
            if has_image and (text or alt):
                expected.append((f"{folder}/{shard}.tar!{key}", text or alt))
        write_tar(folder / f"{shard}.tar", members, form)
    config = TarsConfig(folder, caption={"txt": 1.0, "json:alt": 1.0}, index=folder / "index")
    if expected:
        data = Tars(config)
        assert [(document.name, document.text) for document in data] == expected
    else:
        with pytest.raises(DocumentError, match="no samples"):
            Tars(config)


def test_a_recipe_reads_all_settings(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, SHARDS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "extends: digits/stage1\n"
        "data:\n"
        "  - name: tars\n"
        "    path: '{00000..00001}.tar'\n"
        "    caption: {txt: 1, 'json:caption': 2}\n"
        "    filters: {width: {least: 16}, original_width: {most: 8}}\n"
        "    index: index\n"
        "  - {name: tars, path: [00002.tar], direction: read}\n"
    )
    draft, problems = draft_recipe(str(recipe), (), Registry.load())
    assert not problems
    first, second = (Tars(section.config) for section in draft.data)
    assert (len(first), len(second)) == (20, 10)
    assert len(list((tmp_path / "index").glob("*.npy"))) == 2


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"caption": "json"}, "caption"),
        ({"caption": "json:"}, "caption"),
        ({"caption": "jpg"}, "caption"),
        ({"caption": {}}, "caption"),
        ({"caption": {"txt": 0.0}}, "caption.txt"),
    ],
)
def test_impossible_captions_are_refused_by_key(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        TarsConfig(Path("x"), **config)
    assert list(error.value.problems) == [key]


def test_bounds_need_an_order() -> None:
    for bounds in ((), (2.0, 1.0)):
        with pytest.raises(ConfigError):
            Bounds(*bounds)
