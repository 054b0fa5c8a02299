"""Keys that a data set does not read, and turns that are not what was written."""

import json
from pathlib import Path
from typing import Any

import pytest

from dreamkit.data.conversations import Conversations, ConversationsConfig
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.data.record_keys import is_harmless, names_media
from dreamkit.errors import DocumentError

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
READERS: list[tuple[type, type, dict[str, Any]]] = [
    (Pairs, PairsConfig, {"image": "a.png", "caption": "one"}),
    (Interleaved, InterleavedConfig, {"text": "one"}),
    (Conversations, ConversationsConfig, {"conversations": TURNS}),
]


def open_data(tmp_path: Path, reader: type, config: type, *records: Any) -> Any:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return reader(config(path))


def conversations(tmp_path: Path, *records: Any) -> Any:
    return open_data(tmp_path, Conversations, ConversationsConfig, *records)


MEDIA = """
    video videos video_path videoUrl audio audio_2 IMG photo imagePaths frames point_cloud clip mp4
    pixel_values image_url vid pics mov tiff heic waveform recordings
"""
HARMLESS = """
    id source url score image_id clip_score image_width videoId sha256 num_images model data_source page_url metadata
"""


@pytest.mark.parametrize("key", MEDIA.split())
@pytest.mark.parametrize(("reader", "config", "record"), READERS)
def test_a_key_that_names_media_is_an_error(
    tmp_path: Path, reader: type, config: type, record: Any, key: str
) -> None:
    assert names_media(key)
    for value in ("a.mp4", ["a.mp4"], {"path": "a.mp4"}):
        with pytest.raises(DocumentError, match=rf"data\.jsonl:2: unknown key '{key}' names media"):
            open_data(tmp_path, reader, config, record, record | {key: value})
    for absent in (None, "", [], {}):
        assert not open_data(tmp_path, reader, config, record | {key: absent}).notes


@pytest.mark.parametrize("key", HARMLESS.split())
@pytest.mark.parametrize(("reader", "config", "record"), READERS)
def test_a_harmless_key_is_accepted_in_silence(
    tmp_path: Path, reader: type, config: type, record: Any, key: str
) -> None:
    assert is_harmless(key) and not names_media(key)
    assert not open_data(tmp_path, reader, config, record | {key: "x"}).notes


@pytest.mark.parametrize(("reader", "config", "record"), READERS)
def test_an_unknown_key_is_reported_once_with_its_count(
    tmp_path: Path, reader: type, config: type, record: Any
) -> None:
    data = open_data(
        tmp_path, reader, config, record | {"tools": "x", "image_caption": "y"}, record | {"tools": "x"}
    )
    assert data.notes == [
        f"{tmp_path / 'data.jsonl'}: not read: unknown keys: 'tools' in 2 records, 'image_caption' in 1 record"
    ]


def test_of_many_unknown_keys_the_most_frequent_are_listed(tmp_path: Path) -> None:
    record = {f"{number} extra": 1 for number in range(50)} | {"text": "one", "\x1b[2J": 1}
    (note,) = open_data(
        tmp_path, Interleaved, InterleavedConfig, record, {"text": "one", "often": 1}, record
    ).notes
    assert note.endswith(" and 42 more") and note.count(" records") == 10 and note.isprintable()


def test_the_keys_of_turns_are_checked_too(tmp_path: Path) -> None:
    question, answer = TURNS
    (note,) = conversations(tmp_path, {"conversations": [question, answer | {"weight": 0}]}).notes
    assert note.endswith("not read: unknown keys of 'conversations': 'weight' in 1 record")
    with pytest.raises(DocumentError, match=r"data\.jsonl:1: turn 0: unknown key 'video' names media"):
        conversations(tmp_path, {"conversations": [question | {"video": "a.mp4"}, answer]})


def test_the_key_of_images_in_another_format_is_corrected(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"unknown key 'imgs' .*; did you mean 'image"):
        conversations(tmp_path, {"imgs": ["a.png"], "conversations": TURNS})
    with pytest.raises(DocumentError, match=r"unknown key 'image' .*; did you mean 'images'"):
        open_data(tmp_path, Interleaved, InterleavedConfig, {"text": "<image>", "image": "a.png"})


def test_placeholders_without_an_image_are_reported(tmp_path: Path) -> None:
    records = [{"text": "<video> one <image_1> <video>"}, {"text": "<video>"}, {"text": "a < b"}]
    (note,) = open_data(tmp_path, Interleaved, InterleavedConfig, *records).notes
    assert note.endswith("trained on as plain text: '<video>' in 2 texts, '<image_1>' in 1 text")
    (note,) = open_data(tmp_path, Pairs, PairsConfig, {"image": "a.png", "caption": "<image> one"}).notes
    assert note.endswith("trained on as plain text: '<image>' in 1 text")


@pytest.mark.parametrize("blank", [None, "", []])
def test_null_and_an_empty_string_are_no_image(tmp_path: Path, blank: Any) -> None:
    assert not conversations(tmp_path, {"image": blank, "conversations": TURNS})[0].images
    data = open_data(tmp_path, Interleaved, InterleavedConfig, {"text": "one", "images": blank})
    assert not data[0].images


def test_system_is_the_text_of_the_first_turn(tmp_path: Path) -> None:
    (first, *_), plain = (
        conversations(tmp_path, {"system": system, "conversations": TURNS})[0]
        for system in ("be brief", None)
    )
    assert (first.role, first.text) == ("system", "be brief")
    assert [segment.role for segment in plain] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"conversations": [*TURNS, TURNS[1]]},
            "turn 2: from: expected another speaker after a turn from 'gpt'",
        ),
        ({"conversations": [{"from": "user", "value": "x"}, *TURNS]}, "turn 1: from: .* 'user', got 'human'"),
        (
            {"system": "x", "conversations": [{"from": "system", "value": "y"}, *TURNS]},
            "turn 0: from: expected another speaker after a turn from 'system'",
        ),
        ({"system": 3, "conversations": TURNS}, "system: expected a non-blank string, got 3"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "turn 0: from: .*got a list of length 1"),
        ({"conversations": [{"value": "x"}]}, "turn 0: from: expected one of .*, got null"),
    ],
)
def test_turns_that_no_template_can_tell_apart_are_refused(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(DocumentError, match=rf"data\.jsonl:1: {message}"):
        conversations(tmp_path, record)


@pytest.mark.parametrize("value", ["a.PNG", "x/y.mp4", "https://example.org/sound.flac"])
def test_an_unknown_key_whose_value_is_a_media_file_is_an_error(tmp_path: Path, value: str) -> None:
    record = {"text": "one"}
    with pytest.raises(DocumentError, match=r"data\.jsonl:1: unknown key 'content' names media"):
        open_data(tmp_path, Interleaved, InterleavedConfig, record | {"content": value})
    assert not open_data(tmp_path, Interleaved, InterleavedConfig, record | {"id": value}).notes
