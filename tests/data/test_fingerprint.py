"""Fingerprints of data: the same for copies, others for other documents."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from PIL import Image as PIL

import layouts
import tiny
from dreamkit.data.conversations import Conversations, ConversationsConfig
from dreamkit.data.dataset import Dataset
from dreamkit.data.fingerprint import (
    SAMPLES,
    document_hash,
    fingerprint_differences,
    read_fingerprints,
)
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError, TrainingError, count
from dreamkit.training.run import train_recipe
from runs import REGISTRY

COUNT = 4


def write(folder: Path) -> None:
    (folder / "imgs").mkdir(parents=True)
    for number in range(COUNT):
        tiny.picture(number).save(folder / f"imgs/{number}.png")
        (folder / f"imgs/{number}.txt").write_text(f"picture {number}")
    pairs = [{"image": f"imgs/{n}.png", "caption": f"picture {n}"} for n in range(COUNT)]
    pages = [{"text": f"page {n} <image>", "images": [f"imgs/{n}.png"]} for n in range(COUNT)]
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "yes"}]
    talks = [{"image": f"imgs/{n}.png", "conversations": turns} for n in range(COUNT)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pairs))
    (folder / "pages.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pages))
    (folder / "talks.json").write_text(json.dumps(talks))


KINDS: dict[str, Callable[[Path], Dataset]] = {
    "pairs": lambda folder: Pairs(PairsConfig(folder / "pairs.jsonl")),
    "folder": lambda folder: Pairs(PairsConfig(folder / "imgs")),
    "interleaved": lambda folder: Interleaved(InterleavedConfig(folder / "pages.jsonl")),
    "conversations": lambda folder: Conversations(ConversationsConfig(folder / "talks.json")),
}


def edit(name: str, before: str, after: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after))

    return change


def other_picture(folder: Path) -> None:
    shutil.copy(folder / "imgs/0.png", folder / "imgs/3.png")


CHANGES: dict[str, list[tuple[str, Callable[[Path], None]]]] = {
    "pairs": [("text", edit("pairs.jsonl", "picture 3", "picture 7")), ("picture", other_picture)],
    "folder": [("text", edit("imgs/3.txt", "3", "7")), ("picture", other_picture)],
    "interleaved": [("text", edit("pages.jsonl", "page 3", "page 7")), ("picture", other_picture)],
    "conversations": [("text", edit("talks.json", "yes", "not")), ("picture", other_picture)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_data_has_the_same_fingerprint(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)  # with new times
    here, there = (KINDS[kind](tmp_path / name).fingerprint() for name in ("here", "there"))
    assert here == there and here["documents"] == str(COUNT)
    assert len([name for name in here if name.startswith("document ")]) == COUNT


@pytest.mark.parametrize(
    ("kind", "change"),
    [pytest.param(kind, change, id=f"{kind}-{name}") for kind in CHANGES for name, change in CHANGES[kind]],
)
def test_other_documents_have_another_fingerprint(
    tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    write(tmp_path)
    before = KINDS[kind](tmp_path).fingerprint()
    change(tmp_path)
    differences = fingerprint_differences([before], [KINDS[kind](tmp_path).fingerprint()])
    assert len(differences) == 1 and differences[0].startswith("data.0: changed: ")


class Many(Dataset):
    """A data set of a third party, of `count` documents; those in `bad` cannot be read."""

    def __init__(self, count: int, bad: frozenset[int] = frozenset()) -> None:
        self.count = count
        self.bad = bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Document:
        if index in self.bad:
            raise DocumentError("cut")
        return Document((Text(f"text {index}"),))


@given(st.integers(1, 300), st.integers(1, 300))
def test_any_data_set_has_a_fingerprint_with_its_size(size: int, other: int) -> None:
    fingerprint = Many(size).fingerprint()
    assert len(fingerprint) == 1 + min(size, SAMPLES)
    differences = fingerprint_differences([fingerprint], [Many(other).fingerprint()])
    assert bool(differences) == (size != other)
    assert differences in ([], [f"data.0: had {count(size, 'document')}, has {other}"])


def test_a_document_that_could_not_be_read_may_be_corrected() -> None:
    before, now = Many(5, frozenset({2})).fingerprint(), Many(5).fingerprint()
    assert before.keys() < now.keys()
    assert fingerprint_differences([before], [now]) == fingerprint_differences([now], [before]) == []


class Odd(Many):
    """A data set with a fingerprint of its own; an error is raised."""

    def __init__(self, value: Any) -> None:
        super().__init__(3)
        self.value = value

    def fingerprint(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"documents": 3}, "documents: expected a string, got 3 (integer)"),
        ({"time": None}, "time: expected a string, got null"),
        ({"records": b"ab"}, "records: expected a string, got"),
        ({7: "seven"}, "expected strings as names, got 7 (integer)"),
        (["3"], "expected a dict of strings, got a list"),
        (None, "expected a dict of strings, got null"),
        (KeyError("index"), "KeyError: 'index'"),
    ],
)
def test_a_fingerprint_without_strings_is_refused_before_training(
    tmp_path: Path, value: Any, message: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        train_recipe(layouts.recipe(), REGISTRY, tmp_path / "out", datasets=[Odd(value)])
    assert str(caught.value).startswith(f"data.0 (Odd): fingerprint: {message}")
    assert str(caught.value).endswith("; fix its plug-in") and not (tmp_path / "out").exists()


def test_an_error_of_the_data_in_a_fingerprint_keeps_its_message() -> None:
    with pytest.raises(DocumentError, match=r"^cut$"):
        read_fingerprints([Many(1), Odd(DocumentError("cut"))])


def test_a_hash_covers_what_is_trained() -> None:
    picture = tiny.picture(0)
    palette = picture.convert("P")
    other = palette.copy()
    other.putpalette([1, 2, 3])
    text, image = Text("a", role="user"), Image(picture, draw=True, role="user")
    documents = [
        Document((text, image)),
        Document((image, text)),
        Document((replace(text, text="b"), image)),
        Document((replace(text, train_on=False), image)),
        Document((replace(text, role="assistant"), replace(image, role="assistant"))),
        Document((text, replace(image, draw=False))),
        Document((text, replace(image, read=False))),
        Document((text, replace(image, picture=tiny.picture(1)))),
        Document((text, replace(image, picture=palette))),
        Document((text, replace(image, picture=other))),
        Document((text, replace(image, picture=PIL.new("RGB", (1, 1))))),
    ]
    hashes = list(map(document_hash, documents))
    assert len(set(hashes)) == len(hashes)
    assert document_hash(Document((text, image), name="elsewhere")) == hashes[0]
