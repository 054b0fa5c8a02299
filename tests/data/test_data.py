"""The data sets of plain files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from dreamkit.data.conversations import Conversations, ConversationsConfig
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.document import Image, Text
from dreamkit.errors import DocumentError


def write_image(folder: Path, name: str, colour: str = "red") -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    PIL.new("RGB", (4, 4), colour).save(folder / name)
    return name


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def colour(image: Image) -> Any:
    return image.picture.getpixel((0, 0))


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_pairs_in_a_file_of_lines(tmp_path: Path) -> None:
    lines = [
        {"image": write_image(tmp_path, "a/r.png"), "caption": " red "},
        "",
        {"image": "b.png", "caption": "blue"},
    ]
    write_image(tmp_path, "b.png", "blue")
    path = write_lines(tmp_path / "data.jsonl", lines)
    drawing, reading = Pairs(PairsConfig(path)), Pairs(PairsConfig(path, direction="read"))
    assert len(drawing) == len(reading) == 2
    text, image = drawing[0]
    assert isinstance(text, Text) and text.text == "red"
    assert isinstance(image, Image) and image.draw and not image.read and colour(image) == RED
    image, text = reading[1]
    assert isinstance(image, Image) and image.read and not image.draw and colour(image) == BLUE
    assert isinstance(text, Text) and text.text == "blue"
    assert reading[1].name == f"{path}:3"


def test_pairs_in_a_folder(tmp_path: Path) -> None:
    write_image(tmp_path, "z/one.png", "blue")
    (tmp_path / "z/one.txt").write_text("blue\n")
    pairs = Pairs(PairsConfig(tmp_path))
    assert pairs[0].text == "blue" and len(pairs) == 1
    write_image(tmp_path, "two.png")
    with pytest.raises(DocumentError, match=r"two\.png: missing caption two\.txt"):
        Pairs(PairsConfig(tmp_path))
    (tmp_path / "two.png").rename(tmp_path / "three.png")
    (tmp_path / "three.txt").write_text(" ")
    with pytest.raises(DocumentError, match=r"three\.txt: empty caption"):
        Pairs(PairsConfig(tmp_path))[0]
    (tmp_path / "three.png").unlink()
    with pytest.raises(DocumentError, match=r"three\.txt: missing image"):
        Pairs(PairsConfig(tmp_path))


def test_interleaved(tmp_path: Path) -> None:
    images = [write_image(tmp_path, "r.png"), write_image(tmp_path, "b.png", "blue")]
    path = write_lines(
        tmp_path / "data.jsonl", [{"text": "one"}, {"text": "a <image> b <image>", "images": images}]
    )
    document = Interleaved(InterleavedConfig(path))[1]
    assert [type(segment) for segment in document] == [Text, Image, Text, Image]
    assert [colour(image) for image in document.images] == [RED, BLUE]
    assert all(image.draw and image.read for image in document.images)
    document = Interleaved(InterleavedConfig(path, draw=False))[1]
    assert not any(image.draw for image in document.images) and document.text == "a b"


def test_conversations(tmp_path: Path) -> None:
    record = {
        "image": [write_image(tmp_path, "im/r.png"), write_image(tmp_path, "im/b.png", "blue")],
        "conversations": [
            {"from": "human", "value": "<image>\nthe other one?"},
            {"from": "gpt", "value": "here: <image>"},
        ],
    }
    text_only = {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "hello"}]}
    array = tmp_path / "data.json"
    array.write_text(json.dumps([text_only, record], indent=1))
    for path in (array, write_lines(tmp_path / "data.jsonl", [text_only, record])):
        data = Conversations(ConversationsConfig(path))
        assert data[0].is_conversation and data[0].text == "hi hello"
        assert [(segment.role, type(segment)) for segment in data[1]] == [
            ("user", Image),
            ("user", Text),
            ("assistant", Text),
            ("assistant", Image),
        ]
        first, second = data[1].images
        assert (first.draw, second.draw) == (False, True) and (colour(first), colour(second)) == (RED, BLUE)


GOOD = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
BAD_RECORDS = [
    (Pairs, PairsConfig, '{"image": ', "invalid JSON"),
    (Pairs, PairsConfig, [1], "expected a record .*, got a list of length 1"),
    (Pairs, PairsConfig, {"image": "a.png"}, "missing 'caption': .* keys of the record: image"),
    (Pairs, PairsConfig, {"image": "a.png", "caption": 3}, "caption: expected a non-blank string, got 3"),
    (Interleaved, InterleavedConfig, {"text": "a <image>"}, "got 0 for 1"),
    (
        Interleaved,
        InterleavedConfig,
        {"text": "a", "images": "a.png"},
        "image.*: expected a list of paths, got",
    ),
    (
        Conversations,
        ConversationsConfig,
        {"conversations": []},
        "conversations: expected a list of turns, got",
    ),
    (Conversations, ConversationsConfig, {"conversations": ["hi"]}, "turn 0: expected .*, got 'hi'"),
    (
        Conversations,
        ConversationsConfig,
        {"conversations": [{"from": "humn", "value": "x"}]},
        "did you mean 'human'",
    ),
    (
        Conversations,
        ConversationsConfig,
        {"conversations": [{"from": "human", "value": "x"}]},
        "no turn to train on",
    ),
    (Conversations, ConversationsConfig, GOOD | {"image": "a.png"}, "got 1 for 0"),
    (
        Conversations,
        ConversationsConfig,
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "<draw>"}]},
        "turn 1: <draw> is not supported",
    ),
    (Conversations, ConversationsConfig, GOOD | {"image": [1]}, "image.*: expected a path, got 1"),
]
VALID: dict[type, Any] = {
    Pairs: {"image": "a.png", "caption": "a"},
    Interleaved: {"text": "a"},
    Conversations: GOOD,
}


@pytest.mark.parametrize(("reader", "config", "record", "message"), BAD_RECORDS)
def test_the_error_of_a_record_names_file_and_line(
    tmp_path: Path, reader: type, config: type, record: Any, message: str
) -> None:
    path = write_lines(tmp_path / "data.jsonl", [VALID[reader], "", record])
    with pytest.raises(DocumentError, match=rf"data\.jsonl:3: .*{message}"):
        reader(config(path))


def test_the_error_of_a_record_in_an_array_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([GOOD, GOOD, {"conversations": []}], indent=2))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "[]" in text) - 1
    with pytest.raises(DocumentError, match=rf"data\.json:{line}: conversations: "):
        Conversations(ConversationsConfig(path))
    path.write_text('[\n{"conversations": ]')
    with pytest.raises(DocumentError, match=r"data\.json:2: invalid JSON"):
        Conversations(ConversationsConfig(path))


def test_the_error_of_an_image_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    PIL.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    for name, message in [
        ("none.png", "no such image"),
        ("text.png", "cannot read the image"),
        ("short.png", "cannot read the image"),
    ]:
        path = write_lines(tmp_path / "data.jsonl", [{"image": name, "caption": "x"}])
        with pytest.raises(DocumentError, match=r"data\.jsonl:1: ") as caught:
            Pairs(PairsConfig(path))[0]
        assert name in str(caught.value) and message in str(caught.value)


def test_a_file_needs_to_exist_and_to_have_records(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no such file"):
        Interleaved(InterleavedConfig(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DocumentError, match="no records"):
        Interleaved(InterleavedConfig(tmp_path / "empty.jsonl"))
