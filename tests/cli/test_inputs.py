"""Unusable data and `init`: a note of `check`, and an error of `train` and `cache` before weights are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import layouts
import odd_data
import tiny
from dreamkit.build.build import build_model
from dreamkit.checkpoints import load
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.model.model import DreamModel
from dreamkit.parts.part import Part
from dreamkit.registry.registry import Registry
from dreamkit_transformers.tokenizers import byte_tokenizer

LINE = '{"image": "cat.png", "caption": "a cat"}\n'
TALK = '{"image": "%s", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]}\n'
FILES: Mapping[str, str | None] = {
    "lines.jsonl": LINE,
    "empty.jsonl": "",
    "blank.jsonl": "\n \n",
    "array.json": "[]",
    "null.jsonl": '{"image": null, "caption": "a cat"}\n',
    "gone.jsonl": '{"image": "gone.png", "caption": "a cat"}\n',
    "cut.jsonl": '{"image": "cut.png", "caption": "a cat"}\n',
    "later.jsonl": LINE + '{"image": "gone.png", "caption": "a cat"}\n',
    "pages.jsonl": '{"text": "a <image>", "images": ["gone.png"]}\n',
    "talk.jsonl": TALK % "gone.png",
    "surrogate.jsonl": '{"image": "cat.png", "caption": "a \\ud800 cat"}\n',
    "uncaptioned/cat.txt": " ",
    "vacant/.hidden": "",
}

BUILT_IN = {
    "missing": ({"name": "pairs", "path": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    "no folder": ({"name": "pairs", "path": "no/where"}, "no/where: no such file"),
    "empty file": ({"name": "pairs", "path": "empty.jsonl"}, "empty.jsonl: no records"),
    "blank lines": ({"name": "interleaved", "path": "blank.jsonl"}, "blank.jsonl: no records"),
    "empty array": ({"name": "conversations", "path": "array.json"}, "array.json: no records"),
    "empty folder": ({"name": "pairs", "path": "vacant"}, "vacant: no images"),
    "folder for a file": ({"name": "interleaved", "path": "vacant"}, "expected a regular file, got a folder"),
    "named pipe": (
        {"name": "conversations", "path": "pipe"},
        "pipe: expected a regular file, got a named pipe",
    ),
    "invalid record": ({"name": "pairs", "path": "null.jsonl"}, "null.jsonl:1: image: expected a non-blank"),
    "lone surrogate": (
        {"name": "pairs", "path": "surrogate.jsonl"},
        "surrogate.jsonl:1: caption: expected valid",
    ),
    "missing image": ({"name": "pairs", "path": "gone.jsonl"}, "gone.jsonl:1: no such image"),
    "cut image": ({"name": "pairs", "path": "cut.jsonl"}, "cut.jsonl:1: cannot read the image"),
    "image of a page": ({"name": "interleaved", "path": "pages.jsonl"}, "pages.jsonl:1: no such image"),
    "image of a turn": ({"name": "conversations", "path": "talk.jsonl"}, "talk.jsonl:1: no such image"),
    "blank caption": ({"name": "pairs", "path": "uncaptioned"}, "cat.txt: empty caption"),
    "no image folder": (
        {"name": "pairs", "path": "lines.jsonl", "images": "nowhere"},
        "nowhere: no such folder; correct 'images'",
    ),
}
THIRD_PARTY = {
    cls.__name__: ({"name": cls.__name__.lower()}, message) for cls, message in odd_data.BROKEN.items()
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text or "")
    for name in ("cat.png", "uncaptioned/cat.png"):
        tiny.picture(0).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cat.png").read_bytes()[:200])
    os.mkfifo(tmp_path / "pipe")
    registry = odd_data.registry()
    monkeypatch.setattr(Registry, "load", classmethod(lambda cls: registry))
    return tmp_path


@pytest.fixture(scope="module")
def model() -> DreamModel:
    return build_model(layouts.recipe(), Registry.load())


def write_recipe(data: list[dict[str, Any]], **changes: Any) -> None:
    train = {"trainable": ["visual_projector"], "steps": 1, "batch_size": 1}
    recipe = tiny.recipe(data=data, train=train, **changes)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))


def forbid_weights(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the parts that are built and the weight files that are read from now on."""
    events: list[str] = []
    init = Part.__init__

    def build(self: Part, *args: Any, **named: Any) -> None:
        if torch.get_default_device().type != "meta":  # specs come from parts without weights
            events.append(type(self).__name__)
        init(self, *args, **named)

    monkeypatch.setattr(Part, "__init__", build)
    monkeypatch.setattr(load, "read_tensors", lambda file, *_: events.append(str(file)))
    return events


def assert_refused(run: Any, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """Assert that `check` prints the message as a note, and that `train` and `cache` refuse it before any weights."""
    before = sorted(Path().rglob("*"))
    built = forbid_weights(monkeypatch)
    code, out, err = run("check", "recipe.yaml")
    assert (code, err) == (0, "")
    table, _, notes = out.partition("note: train would refuse these inputs:\n")
    assert "visual_projector" in table and message in notes
    assert f"{Path('recipe.yaml').absolute()}:" in notes
    for command in ("train", "cache"):
        code, out, err = run(command, "recipe.yaml", "--out", "out")
        assert (code, out) == (2, "")
        assert message in err and "Traceback" not in err
    assert built == []
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("section", "message"), BUILT_IN.values(), ids=BUILT_IN)
def test_unusable_data_is_refused_before_weights_are_read(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], message: str
) -> None:
    write_recipe([section])
    assert_refused(run, monkeypatch, message)


@pytest.mark.parametrize(("section", "message"), THIRD_PARTY.values(), ids=THIRD_PARTY)
def test_a_broken_data_set_of_a_plug_in_is_refused_before_weights_are_read(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], message: str
) -> None:
    write_recipe([section])
    assert_refused(run, monkeypatch, message)


def test_a_recipe_without_data_is_refused_before_weights_are_read(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe([])
    assert_refused(run, monkeypatch, "data: no training data: name at least one data set")


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("nowhere", "nowhere is not a checkpoint: there is no such folder"),
        ("vacant", "vacant is not a checkpoint: it has no dreamkit.json"),
        ("lines.jsonl", "lines.jsonl is not a checkpoint: it is a file"),
        ("run/checkpoint", "run/checkpoint: the checkpoint is damaged"),
        ("run", "did you mean"),
        ("sound/checkpoint", "expected visual_projector 'linear', got 'mlp' in the recipe"),
    ],
)
def test_an_unusable_init_is_refused_before_weights_are_read(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, model: DreamModel, init: str, message: str
) -> None:
    for name in ("run", "sound"):
        save_checkpoint(model, folder / name / "checkpoint")
    weights = folder / "run/checkpoint/visual_projector.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    write_recipe([{"name": "words"}], init=init, **{"model.visual_projector": {"name": "mlp"}})
    assert_refused(run, monkeypatch, message)


def test_problems_of_all_inputs_are_listed_together(run, folder: Path) -> None:
    write_recipe(
        [{"name": "void"}, {"name": "words"}, {"name": "pairs", "path": "nowhere.jsonl"}], init="nowhere"
    )
    code, _, err = run("train", "recipe.yaml", "--out", "out")
    assert code == 2 and "the recipe has 3 problems" in err
    assert [line.split(": ")[1] for line in err.splitlines()[1:]] == ["init", "data.0", "data.2"]


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_template_that_refuses_every_conversation_is_noted_by_check(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch, is_chat: bool
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    tokenizer.save_pretrained("tokenizer")
    Path("chat.jsonl").write_text(TALK % "cat.png")
    data = {"name": "conversations", "path": "chat.jsonl"} if is_chat else {"name": "words"}
    sizes = tiny.RECIPE["model"]["language_model"]["config"]
    language = {"name": "llama", "config": sizes, "tokenizer": "tokenizer"}
    write_recipe([data], **{"model.language_model": language})
    code, out, err = run("check", "recipe.yaml")
    reason = "refuses a conversation of user, assistant (TemplateError: never); name a tokenizer with another template"
    assert (code, err, out.count(reason)) == (0, "", 1)
    refused = "data.0: expected documents without roles, got a conversation; the tokenizer '"
    noted = "model.language_model: conversations are refused: the tokenizer '"
    assert (refused in out, noted in out) == (is_chat, not is_chat)
    built = forbid_weights(monkeypatch)
    if is_chat:
        code, out, err = run("train", "recipe.yaml", "--out", "out")
        assert (code, out, built) == (2, "", [])
        assert refused in err and reason in err


def test_a_bad_first_document_is_a_note_unless_the_policy_is_to_stop(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "first.jsonl").write_text(FILES["gone.jsonl"] + LINE)  # type: ignore[operator]
    write_recipe([{"name": "pairs", "path": "first.jsonl"}])
    bad = f"{folder / 'first.jsonl'}:1: no such image: {folder / 'gone.png'}"
    code, out, _ = run("check", "recipe.yaml")
    assert code == 0 and "would refuse" not in out
    assert f"data.0: bad documents are skipped in training; the first document is one: {bad}\n" in out
    built = forbid_weights(monkeypatch)
    code, out, err = run("train", "recipe.yaml", "train.on_error=stop", "--out", "out")
    assert (code, out, built) == (2, "", []) and f"data.0: {bad}" in err
    (folder / "first.jsonl").write_text(FILES["gone.jsonl"] * 101 + LINE)  # type: ignore[operator]
    code, out, err = run("train", "recipe.yaml", "--out", "out")
    assert (code, out, built) == (2, "", [])
    assert f"data.0: {bad}; none of the first 100 documents can be read" in err


def test_sound_inputs_have_no_note_but_those_of_the_data_set(run, folder: Path) -> None:
    write_recipe([{"name": "words"}, {"name": "noted"}, {"name": "pairs", "path": "later.jsonl"}])
    code, out, err = run("check", "recipe.yaml")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "words: not read: 7 letters"
    assert "note:" not in out


def test_a_resumed_run_refuses_missing_data_before_weights_are_read(
    run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe([{"name": "pairs", "path": "lines.jsonl"}])
    assert run("train", "recipe.yaml", "train.steps=2", "train.save_every=1", "--out", "out")[0] == 0
    Path("lines.jsonl").rename("moved.jsonl")
    shutil.rmtree("out/checkpoint")  # that of a finished run
    built = forbid_weights(monkeypatch)
    code, _, err = run(
        "train", "recipe.yaml", "train.steps=2", "train.save_every=1", "--resume", "--out", "out"
    )
    assert code == 2 and "lines.jsonl: no such file" in err
    assert built == []
