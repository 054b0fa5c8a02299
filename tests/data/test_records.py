"""Files of records: their encodings, their JSON, and changes while they are read."""

import codecs
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image as PIL

from dreamkit.data.conversations import Conversations, ConversationsConfig
from dreamkit.data.image_files import open_picture
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.data.records import Records
from dreamkit.errors import DocumentError

BOM = codecs.BOM_UTF8
CAPTION = {"image": "a.png", "caption": "café"}


def accept(record: Any) -> None:
    """Accept every record."""


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(path: Path) -> list[dict[str, Any]]:
    records = Records(path, accept)
    return [records[index][1] for index in range(len(records))]


# Integers of JSON have a limit of digits here, and keys must differ; text has no lone surrogates.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
json_records = st.lists(st.dictionaries(st.text(max_size=4), json_values, max_size=3), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(json_records, st.sampled_from([".json", ".jsonl", ""]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_lines_and_arrays_hold_the_same_records_under_any_name(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], suffix: str, has_bom: bool, end: str
) -> None:
    folder, bom = tmp_path_factory.mktemp("records"), BOM if has_bom else b""
    texts = [json.dumps(record, ensure_ascii=False) for record in records]
    files = [end.join(texts), "[" + f",{end}".join(texts) + f"]{end}", json.dumps(records, indent=2)]
    for number, text in enumerate(files):
        assert read(write(folder / f"{number}{suffix}", bom + text.encode())) == records


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40) | st.text('[]{},:"\\ud8n0-1e\ufeff \n', max_size=30).map(str.encode))
def test_any_bytes_are_records_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", data)
    try:
        read(path)
    except DocumentError as error:
        assert str(error).startswith(str(path))


def test_a_byte_order_mark_is_dropped_wherever_a_line_starts_with_one(tmp_path: Path) -> None:
    line = BOM + json.dumps(CAPTION).encode() + b"\r\n"
    assert read(write(tmp_path / "joined.jsonl", line + line)) == [CAPTION, CAPTION]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"{}", mtime=0), "expected text, got a gzip file; unpack it with gunzip"),
        (json.dumps(CAPTION).encode("utf-16"), "expected UTF-8, got UTF-16"),
        (json.dumps(CAPTION).encode("utf-16-be"), "expected UTF-8, got UTF-16-BE"),
        (b'{}\n{"caption": "caf\xe9"}', r":2: expected UTF-8, got byte 0xe9 at position 16"),
        (b'{}\n{"caption": "\xed\xa0\xbd"}', r":2: expected UTF-8, got byte 0xed"),
        (b'{}\n{"a": 1, "a": 2}', r":2: invalid JSON: key 'a' is set twice"),
        (b'[{},\n{"a": 1, "a": 2}]', r":2: invalid JSON: key 'a' is set twice"),
        (b"[{}\n{}]", r":2: invalid JSON: expected ',' or '\]' after a record"),
        (b"[{},\n]", r":2: invalid JSON: "),
        (b"[{}]\n[{}]", r":2: invalid JSON: expected nothing after the array"),
        (b"[{}", r":1: invalid JSON: expected ',' or '\]' after a record"),
        (b"[]", "no records"),
        (b'{\n "a": 1\n}', r":1: invalid JSON: .* expected one record per line, or one array"),
    ],
)
def test_other_encodings_and_formats_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        read(write(tmp_path / "data.jsonl", data))


def section(value: str) -> str:
    """Return JSON with the text `value` as a value."""
    return f'{{"a": {value}}}'


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = [
    (section(DEEP), "expected at most 50 nested values, got more"),
    (section("[" * 500 + "]" * 500), "expected at most 50 nested values, got more"),
    (section("[" * 100_000), "expected at most 50 nested values, got more"),
    (section("9" * 5_000), "expected at most 80 digits in an integer, got 5,000"),
    (section("-" + "9" * 5_000), "expected at most 80 digits in an integer, got 5,000"),
]


@pytest.mark.parametrize(("record", "message"), HOSTILE)
def test_hostile_json_is_a_user_error_with_its_line(tmp_path: Path, record: str, message: str) -> None:
    for text in (f"{{}}\n{record}\n", f"[{{}},\n{record}]"):
        with pytest.raises(DocumentError, match=rf"data\.json:2: .*{message}"):
            read(write(tmp_path / "data.json", text))


SURROGATES = [
    (Pairs, PairsConfig, {"image": "a.png", "caption": "one \ud83d"}, "caption"),
    (Interleaved, InterleavedConfig, {"text": "one \udfff"}, "text"),
    (
        Conversations,
        ConversationsConfig,
        {"conversations": [{"from": "human", "value": "\ud83d?"}, {"from": "gpt", "value": "ho"}]},
        "turn 0: value",
    ),
    (
        Conversations,
        ConversationsConfig,
        {
            "system": "\ud83d",
            "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}],
        },
        "system",
    ),
    (Pairs, PairsConfig, {"image": "a\ud83d.png", "caption": "one"}, "image"),
    (Pairs, PairsConfig, {"image": "a\0.png", "caption": "one"}, "image"),
    (Interleaved, InterleavedConfig, {"text": "<image>", "images": ["\ud83d.png"]}, "images"),
]


@pytest.mark.parametrize(("reader", "config", "record", "key"), SURROGATES)
def test_characters_that_no_text_or_path_can_have_are_refused_at_the_start(
    tmp_path: Path, reader: type, config: type, record: Any, key: str
) -> None:
    path = write(tmp_path / "data.jsonl", "\n" + json.dumps(record))
    with pytest.raises(DocumentError, match=rf"data\.jsonl:2: {key}: expected ") as caught:
        reader(config(path))
    assert str(caught.value).isprintable()


def test_a_whole_pair_of_surrogates_is_one_character(tmp_path: Path) -> None:
    assert read(write(tmp_path / "data.jsonl", r'{"caption": "\ud83d\ude00"}')) == [{"caption": "😀"}]


def test_a_file_name_that_is_not_utf8_is_read_and_shown_with_escapes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    PIL.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    (tmp_path / name).with_suffix(".txt").write_text("one")
    assert Pairs(PairsConfig(tmp_path))[0].name == f"{tmp_path}/caf\\udce9.png"
    path = write(tmp_path / "data.jsonl", json.dumps({"image": name, "caption": "one"}))
    assert Pairs(PairsConfig(path))[0].text == "one"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ('{"image": "b.png", "caption": "one"}\n', "line 1 is another one now"),
        ('{"image": "a', "line 1 is another one now"),
        ("", "line 1 is another one now"),
        (None, "No such file"),
    ],
)
def test_a_line_that_changed_since_it_was_checked_is_refused(
    tmp_path: Path, changed: str | None, reason: str
) -> None:
    path = write(tmp_path / "data.jsonl", '{"image": "a.png", "caption": "one"}\n')
    records = Records(path, accept)
    if changed is None:
        path.unlink()
    else:
        path.write_text(changed)
    with pytest.raises(DocumentError, match=rf"data\.jsonl changed while being read: {reason}"):
        records[0]


@settings(deadline=None, max_examples=50)
@given(before=json_records, after=json_records, index=st.integers(0, 4))
def test_a_rewritten_file_gives_the_checked_record_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, before: list[Any], after: list[Any], index: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rewritten.jsonl"
    write(path, "\n".join(map(json.dumps, before)))
    records, number = Records(path, accept), index % len(before)
    write(path, "\n".join(map(json.dumps, after)))
    try:
        assert records[number][1] == before[number]
    except DocumentError as error:
        assert "changed while being read" in str(error)


def test_lines_may_be_appended_while_a_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", json.dumps(CAPTION))
    records = Records(path, accept)
    with path.open("a") as file:
        file.write('\n{"caption": "more"}\n')
    assert len(records) == 1 and records[0][1] == CAPTION


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to a pipe"])
def test_what_is_not_a_regular_file_is_refused_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path = Path(os.devnull)
        case "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to(tmp_path / "pipe")
    name = "a folder" if kind == "folder" else "a device" if kind == "device" else "a named pipe"
    with pytest.raises(DocumentError, match=rf"c:1: expected an image in a regular file, got {name}"):
        open_picture(path, "c:1")
    for reader, config in ((Interleaved, InterleavedConfig), (Conversations, ConversationsConfig)):
        with pytest.raises(DocumentError, match=f"{path}: expected a regular file, got {name}"):
            reader(config(path))
    if kind != "folder":
        with pytest.raises(DocumentError, match=f"{path}: expected a regular file, got {name}"):
            Pairs(PairsConfig(path))


def test_a_file_that_becomes_a_pipe_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", json.dumps(CAPTION))
    records = Records(path, accept)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DocumentError, match=r"changed while being read: .* got a named pipe"):
        records[0]


@pytest.mark.parametrize("name", ["f.tif", "i.tif", "signed.tif", "f.pfm"])
def test_an_image_without_a_known_range_is_refused_with_its_file_and_mode(tmp_path: Path, name: str) -> None:
    dtype = np.float32 if name.startswith("f") else np.int32
    PIL.fromarray(np.ones((4, 4), dtype)).save(tmp_path / name)
    with pytest.raises(
        DocumentError, match=rf"c:1: .*{name}: expected an image of 8 or 16 bits, got .* \(mode"
    ):
        open_picture(tmp_path / name, "c:1")


@pytest.mark.parametrize("name", ["a.png", "a.pgm", "a.tif"])
def test_sixteen_bit_grey_files_open_in_a_sixteen_bit_mode(tmp_path: Path, name: str) -> None:
    grey = np.array([[0, 257, 65535]], dtype=np.uint16)
    PIL.fromarray(grey).save(tmp_path / name)
    picture = open_picture(tmp_path / name, "c:1")
    assert picture.mode.startswith("I;16") and np.array_equal(np.asarray(picture), grey)


@pytest.mark.parametrize(
    ("tag", "value", "message"), [(258, 12, "got 12 bits"), (262, 0, "got white as 0; invert the image")]
)
def test_grey_values_that_pillow_does_not_scale_are_refused(
    tmp_path: Path, tag: int, value: int, message: str
) -> None:
    picture = PIL.fromarray(np.zeros((4, 4), np.uint16))
    picture.save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    entry = tag.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00"  # one short integer
    data[data.index(entry) + 8] = value
    with pytest.raises(DocumentError, match=rf"a\.tif: .*{message}"):
        open_picture(write(tmp_path / "a.tif", bytes(data)), "c:1")


ROOTED = [
    (Pairs, PairsConfig, lambda path: {"image": path, "caption": "one"}, "image"),
    (Interleaved, InterleavedConfig, lambda path: {"text": "<image>", "images": [path]}, "images"),
    (
        Conversations,
        ConversationsConfig,
        lambda path: {
            "image": path,
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "one"}],
        },
        "image",
    ),
]


@pytest.mark.parametrize(("reader", "config", "record", "key"), ROOTED)
def test_no_path_leaves_the_folder_of_images(
    tmp_path: Path, reader: type, config: type, record: Any, key: str
) -> None:
    root, secret = tmp_path / "imgs", tmp_path / "secret.png"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "far/deep").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "far/deep")
    for path in (secret, root / "a.png", tmp_path / "far/deep/b.png", tmp_path / "far/c.png"):
        PIL.new("RGB", (4, 4)).save(path)

    def data(path: str, images: Path | None) -> Any:
        return reader(config(write(tmp_path / "data.jsonl", json.dumps(record(path))), images=images))

    # `link/../c.png` is far/c.png
    for path in ("../secret.png", str(secret), "deep/../../secret.png", "link/../c.png"):
        with pytest.raises(DocumentError, match=rf"data\.jsonl:1: {key}: expected a path inside 'images'"):
            data(path, root)
    for path in ("a.png", "./a.png", "deep/../a.png", str(root / "a.png"), "link/b.png"):
        assert len(data(path, root)[0].images) == 1
    # Without `images`, a path may lead anywhere.
    for path in ("secret.png", str(secret), "imgs/../secret.png", f"../{tmp_path.name}/secret.png"):
        assert len(data(path, None)[0].images) == 1


@pytest.mark.parametrize(("reader", "config", "record", "key"), ROOTED)
def test_the_folder_of_images_must_be_there(
    tmp_path: Path, reader: type, config: type, record: Any, key: str
) -> None:
    path = write(tmp_path / "data.jsonl", json.dumps(record("a.png")))
    with pytest.raises(DocumentError, match="none: no such folder; correct 'images' of the data set"):
        reader(config(path, images=tmp_path / "none"))
