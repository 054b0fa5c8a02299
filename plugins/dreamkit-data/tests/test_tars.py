"""The data set `tars`: pairs in tars as img2dataset writes them."""

import errno
import json
import os
import pickle
import random
import signal
import tarfile
from collections import Counter
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from dreamkit import ConfigError, Dataset, Document, DocumentError, Image, Registry, StorageError, Text
from dreamkit.data import range_reads
from dreamkit.recipe.loading import draft_recipe
from dreamkit_data import spans, tar_samples
from dreamkit_data.member_records import Bounds
from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits import digits
from tar_files import digit_metadata, digit_sample, encoded, write_img2dataset, write_tar


def open_tars(path: Path | list[Path], **settings: Any) -> Tars:
    return Tars(TarsConfig(path, **settings))


def pixels(image: Image) -> np.ndarray:
    return np.asarray(image.picture.convert("RGB"))


def sample(key: str, **members: Any) -> list[tuple[str, bytes]]:
    """Return members by their suffixes; a dict is JSON, and True a digit."""
    made = []
    for suffix, content in members.items():
        if content is True:
            content = encoded(digits.load("train").image(0))
        elif isinstance(content, dict):
            content = json.dumps(content).encode()
        elif isinstance(content, str):
            content = content.encode()
        made.append((f"{key}.{suffix}", content))
    return made


SHARDS = [[digit_metadata(10 * shard + n) for n in range(10)] for shard in range(3)]


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


def test_a_second_start_reads_no_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_img2dataset(tmp_path, SHARDS)
    first = open_tars(tmp_path)
    monkeypatch.setattr(tar_samples, "samples", None)
    monkeypatch.setattr(os, "pread", None)
    assert len(open_tars(tmp_path)) == len(first) == 30


def test_a_changed_tar_and_other_settings_are_indexed_anew(tmp_path: Path) -> None:
    (path,) = write_img2dataset(tmp_path, SHARDS[:1])
    assert len(open_tars(path)) == 10
    assert len(open_tars(path, filters={"original_width": Bounds(least=1)}, caption="json:caption")) == 10
    with pytest.raises(DocumentError, match=r"10 samples by the filter of 'width' \(least 17\)"):
        open_tars(path, filters={"width": Bounds(least=17)})
    write_img2dataset(tmp_path, [[digit_metadata(n) for n in range(7)]])
    assert len(open_tars(path)) == 7


def test_a_document_is_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_img2dataset(tmp_path, SHARDS)
    data = open_tars(tmp_path)
    reads = []
    original = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: reads.append(args) or original(*args))
    for number in random.Random(0).sample(range(30), 30):
        assert data[number].text == digit_metadata(number)["caption"]
    assert len(reads) == 30


def test_files_stay_within_the_limit_of_open_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MOST_OPEN", 3)
    write_img2dataset(tmp_path, [[digit_metadata(n)] for n in range(12)])
    data = open_tars(tmp_path)
    for number in [*range(12), *range(12)]:
        assert data[number].name.endswith(f"!{number:09}")
    targets = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert sum(target.startswith(str(tmp_path)) and target.endswith(".tar") for target in targets) == 3


def test_copies_in_other_processes_read_the_same(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, SHARDS)
    data = open_tars(tmp_path)
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert [copy[n] for n in range(30)] == [data[n] for n in range(30)]
    for number in (-1, 30):
        with pytest.raises(IndexError):
            data[number]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_while_a_thread_opens_a_file_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_img2dataset(tmp_path, SHARDS)
    data = open_tars(tmp_path)
    is_open, go_on = Event(), Event()
    original = range_reads.open_regular

    def slow(path: Path) -> Any:
        if path.name == "00000.tar":
            is_open.set()
            go_on.wait()
        return original(path)

    monkeypatch.setattr(range_reads, "open_regular", slow)
    thread = Thread(target=lambda: data[0])
    thread.start()
    is_open.wait()
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        code = 1
        try:
            code = int(data[29].text != digit_metadata(29)["caption"])
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    go_on.set()
    thread.join()
    assert status == 0


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
