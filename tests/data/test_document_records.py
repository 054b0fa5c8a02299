"""Records with `content` or `messages`: documents survive a round trip, and invalid ones are named."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image as PIL

import tiny
from dreamkit.data import data_urls
from dreamkit.data.data_urls import picture_source, png_url
from dreamkit.data.document_records import document_record
from dreamkit.data.fingerprint import document_hash
from dreamkit.data.image_files import open_picture
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError
from dreamkit.parts.pictures import to_rgb

ORIENTATION = 274  # tag of EXIF
FILES = ("rgb.png", "grey.jpg", "palette.png", "cmyk.jpg", "deep.png", "turned.jpg", "clear.png", "a .png")


def pictures(folder: Path) -> list[PIL.Image]:
    """Write files of several modes to `folder`; return their images and others in memory, all unlike."""
    picture = tiny.picture(0, 8)
    picture.save(folder / "rgb.png")
    picture.save(folder / "a .png")
    picture.convert("L").save(folder / "grey.jpg")
    picture.quantize(5).save(folder / "palette.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    PIL.new("I;16", (3, 2), 700).save(folder / "deep.png")
    clear = picture.convert("P")
    clear.save(folder / "clear.png", transparency=3)
    exif = PIL.Exif()
    exif[ORIENTATION] = 6
    picture.crop((0, 0, 8, 4)).save(folder / "turned.jpg", exif=exif)
    files = [open_picture(folder / name, name) for name in FILES]
    modes = ("RGB", "L", "LA", "RGBA", "1", "I;16")
    return [*files, *(PIL.new("I;16", (2, 5), 9) if m == "I;16" else picture.convert(m) for m in modes)]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
flags = st.booleans()


def segments(pool: list[PIL.Image], role: Any) -> st.SearchStrategy[Any]:
    images = st.builds(
        lambda picture, read, draw, train_on: Image(picture, read or not draw, draw, train_on, role),
        st.sampled_from(pool),
        flags,
        flags,
        flags,
    )
    return st.lists(st.builds(Text, texts, flags, st.just(role)) | images, min_size=1, max_size=4)


@st.composite
def documents(draw: st.DrawFn, pool: list[PIL.Image]) -> Document:
    if draw(flags):
        return Document(tuple(draw(segments(pool, None))))
    roles = draw(
        st.sampled_from([["assistant"], ["user", "assistant"], ["system", "user", "assistant", "user"]])
    )
    return Document(tuple(segment for role in roles for segment in draw(segments(pool, role))))


def read_back(records: list[dict[str, Any]], folder: Path, **settings: Any) -> list[Document]:
    path = folder / "written.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="ascii")
    return list(map(Interleaved(InterleavedConfig(path, **settings)).__getitem__, range(len(records))))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[PIL.Image]:
    return pictures(tmp_path_factory.mktemp("pictures"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_documents_read_back_are_equal(tmp_path: Path, pool: list[PIL.Image], data: st.DataObject) -> None:
    written = data.draw(st.lists(documents(pool), min_size=1, max_size=3))
    read = read_back([document_record(each) for each in written], tmp_path, draw=data.draw(flags))
    assert list(map(document_hash, read)) == list(map(document_hash, written))
    assert [each.name for each in read] == [f"{tmp_path}/written.jsonl:{n + 1}" for n in range(len(read))]


def test_an_image_of_a_file_is_its_absolute_path_and_others_are_data_urls(pool: list[PIL.Image]) -> None:
    sources = list(map(picture_source, pool))
    assert [Path(source).name for source in sources[: len(FILES)]] == list(FILES)
    assert all(Path(source).is_absolute() for source in sources[: len(FILES)])
    assert all(source.startswith("data:image/png;base64,") for source in sources[len(FILES) :])


def test_a_changed_file_or_a_part_of_it_is_a_data_url(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    tiny.picture(0).save(path)
    picture = open_picture(path, "here")
    assert picture_source(picture) == str(path)
    assert picture_source(picture.crop((0, 0, 4, 4))).startswith("data:")
    tiny.picture(1).save(path)
    assert picture_source(picture).startswith("data:")
    path.unlink()
    assert picture_source(picture).startswith("data:")


@pytest.mark.parametrize("name", ["cmyk.jpg", "turned.jpg", "clear.png", "palette.png"])
def test_parts_see_the_same_image_in_a_data_url(pool: list[PIL.Image], name: str) -> None:
    picture = pool[FILES.index(name)]
    copy = PIL.open(io.BytesIO(base64.b64decode(png_url(picture).split(",")[1])))
    assert to_rgb(copy).tobytes() == to_rgb(picture).tobytes()
    assert to_rgb(copy).size == to_rgb(picture).size


def test_the_setting_draw_is_the_default_of_images_that_the_model_writes(tmp_path: Path) -> None:
    source = png_url(tiny.picture(0))
    image, drawn = {"type": "image", "image": source}, {"type": "image", "image": source, "draw": True}
    openai = {"type": "image_url", "image_url": {"url": source, "detail": "low"}}
    turns = [{"role": "user", "content": [openai, drawn]}, {"role": "assistant", "content": [image]}]
    for draw in (True, False):
        page, talk = read_back([{"content": [image]}, {"messages": turns}], tmp_path, draw=draw)
        assert [segment.draw for segment in page] == [draw]
        assert [segment.draw for segment in talk] == [False, True, draw]


def test_a_turn_or_a_part_may_be_left_out_of_training(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a", "train_on": True}, {"type": "text", "text": "b"}]
    turns = [
        {"role": "assistant", "content": "first", "train_on": False},
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": parts, "train_on": False},
    ]
    (talk,) = read_back([{"messages": turns}], tmp_path)
    assert [segment.train_on for segment in talk] == [False, True, True, False]


def test_data_urls_and_paths_can_be_mixed_in_images(tmp_path: Path) -> None:
    tiny.picture(0).save(tmp_path / "a.png")
    record = {"text": "<image> and <image>", "images": ["a.png", png_url(tiny.picture(1))]}
    (page,) = read_back([record], tmp_path)
    assert [image.picture.tobytes() for image in page.images] == [tiny.picture(n).tobytes() for n in (0, 1)]


def test_placeholders_in_parts_are_text(tmp_path: Path) -> None:
    (page,) = read_back([{"content": "an <image> tag"}], tmp_path)
    assert page == Document((Text("an <image> tag"),))
    dataset = Interleaved(InterleavedConfig(tmp_path / "written.jsonl"))
    assert "placeholders that are trained on as plain text: '<image>' in 1 text" in dataset.notes[0]


def test_null_counts_as_absent_in_turns_and_parts(tmp_path: Path) -> None:
    source = png_url(tiny.picture(0))
    text, image = {"type": "text", "text": "a"}, {"type": "image", "image": source}
    nulls: list[dict[str, Any]] = [
        {**text, "image": None, "train_on": None},
        {**image, "text": None, "draw": None, "read": None, "train_on": None},
    ]
    records = [
        [{"content": parts}, {"messages": [{"role": "assistant", "content": parts, "train_on": train_on}]}]
        for parts, train_on in (([text, image], True), (nulls, None))
    ]
    for draw in (True, False):
        expected, read = (read_back(each, tmp_path, draw=draw) for each in records)
        assert list(map(document_hash, read)) == list(map(document_hash, expected))


def test_a_system_text_beside_messages_is_a_turn_before_them(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    beside, before, without = read_back(
        [
            {"system": "s", "messages": turns},
            {"messages": [{"role": "system", "content": "s"}, *turns]},
            {"system": "", "messages": turns},
        ],
        tmp_path,
    )
    assert beside == before and beside.segments[0] == Text("s", role="system")
    assert [segment.role for segment in without] == ["user", "assistant"]


PART = {"type": "text", "text": "a"}
BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"content": "a", "messages": []}, "expected 'content' or 'messages', got both"),
    ({"content": []}, "content: expected a text or a list of parts, got a list of length 0"),
    ({"content": {}}, "content: expected a text or a list of parts, got a section"),
    ({"content": "\ud800"}, "content: text: expected valid characters, got the lone surrogate"),
    ({"content": [PART, "b"]}, "content.1: expected"),
    ({"content": [{"text": "a"}]}, "content.0: type: expected one of text, image, image_url, got null"),
    ({"content": [{"type": "imag", "image": "a"}]}, "did you mean 'image'?"),
    ({"content": [{"type": "text", "text": 3}]}, "content.0: text: expected a string, got 3"),
    ({"content": [{**PART, "image": "a.png"}]}, "of the type 'text', also got image"),
    ({"content": [{**PART, "video": "a.mp4"}]}, "content.0: unknown key 'video' names media"),
    ({"content": [{**PART, "train_on": 1}]}, "content.0: train_on: expected true or false, got 1"),
    ({"content": [{"type": "image"}]}, "content.0: image: expected a path or a data URL, got null"),
    ({"content": [{"type": "image", "image": "a", "draw": "no"}]}, "draw: expected true or false"),
    ({"content": [{"type": "image", "image": "a", "draw": False, "read": False}]}, "would not see it"),
    ({"content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]}, "download the image"),
    ({"content": [{"type": "image", "image": "data:text/html,a"}]}, "expected a data URL such as"),
    ({"content": [{"type": "image", "image": "a\0"}]}, "image: expected a path"),
    ({"messages": []}, "messages: expected a list of turns, got a list of length 0"),
    ({"messages": ["a"]}, "messages.0: expected"),
    ({"messages": [{"role": "asistant", "content": "a"}]}, "did you mean 'assistant'?"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "messages.0: role: expected one of system"),
    ({"messages": [{"role": "user", "content": "a"}]}, "no turn to train on"),
    ({"messages": [{"role": "assistant"}]}, "messages.0: content: expected a text or a list of parts"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]},
        "join the two turns",
    ),
    ({"messages": [{"role": "user", "content": "a", "audio": "a.wav"}]}, "unknown key 'audio' names media"),
    ({"messages": [{"role": "user", "content": "a", "train_on": "no"}]}, "train_on: expected true or false"),
    (
        {"system": "s", "messages": [{"role": "system", "content": "s"}]},
        "expected another role after a turn of 'system'",
    ),
    (
        {"system": 3, "messages": [{"role": "assistant", "content": "s"}]},
        "system: expected a non-blank string",
    ),
    ({"content": "a", "images": ["a.png"]}, "unknown key 'images' names media"),
    ({"text": "<image>", "images": ["data:image/png;base32,AA"]}, "images: expected a data URL such as"),
]


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS, ids=[message for _, message in BAD_RECORDS])
def test_an_invalid_record_is_an_error_at_the_start_that_names_its_line(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"content": "good"}\n' + json.dumps(record))
    with pytest.raises(DocumentError) as error:
        Interleaved(InterleavedConfig(path))
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)


def test_an_image_of_a_turn_that_the_model_neither_reads_nor_draws_is_an_error(tmp_path: Path) -> None:
    unread = {"type": "image", "image": "a.png", "read": False}
    turns = [{"role": "user", "content": [unread]}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DocumentError, match="would not see it"):
        read_back([{"messages": turns}], tmp_path)
    (page,) = read_back([{"content": [{**unread, "image": png_url(tiny.picture(0))}]}], tmp_path)
    assert (page.images[0].draw, page.images[0].read) == (True, False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("!!!!", "expected base64"),
        ("AAA", "expected base64"),
        ("AAA\u00e9", "expected base64"),
        ("", "data URL: expected an image, got an empty file"),
        (
            base64.b64encode(b"<svg/>").decode(),
            "data URL: cannot read the image: expected an image of a format",
        ),
        (png_url(tiny.picture(0)).split(",")[1][:200], "data URL: cannot read the image"),
    ],
)
def test_a_data_url_that_cannot_be_decoded_is_an_error_of_its_document(
    tmp_path: Path, body: str, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"text": "<image>", "images": [f"data:image/png;base64,{body}"]}))
    dataset = Interleaved(InterleavedConfig(path))
    with pytest.raises(DocumentError, match=f"bad.jsonl:1: {message}"):
        dataset[0]


def test_a_long_data_url_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = png_url(tiny.picture(0))
    monkeypatch.setattr(data_urls, "MOST_CHARACTERS", len(url) - 1)
    with pytest.raises(DocumentError, match=r"expected a data URL of at most .* characters"):
        read_back([{"text": "<image>", "images": [url]}], tmp_path)


def test_a_record_with_a_text_reads_no_other_form(tmp_path: Path) -> None:
    (page,) = read_back([{"text": "a", "content": "b", "messages": None}], tmp_path)
    assert page == Document((Text("a"),))
    (talk,) = read_back([{"text": None, "messages": [{"role": "assistant", "content": "b"}]}], tmp_path)
    assert replace(talk, name="") == Document((Text("b", role="assistant"),))
