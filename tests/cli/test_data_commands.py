"""`dreamkit data check` and `dreamkit data preview`: what they print and write, and their exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from dreamkit.build.build import build_model
from dreamkit.data.fingerprint import document_hash
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.inspection.run_data import open_run
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry

TRAIN = {"trainable": ["visual_projector"], "steps": 5, "batch_size": 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with a recipe of pages and of a conversation."""
    monkeypatch.chdir(tmp_path)
    tiny.picture(0).save("cat.png")
    Path("pages.jsonl").write_text('{"text": "a <image> and <draw>", "images": ["cat.png", "cat.png"]}\n')
    turns = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "a cat"}]
    Path("talk.json").write_text(json.dumps([{"image": "cat.png", "conversations": turns}]))
    data = [
        {"name": "interleaved", "path": "pages.jsonl", "draw": False},
        {"name": "conversations", "path": "talk.json"},
    ]
    Path("recipe.yaml").write_text(yaml.safe_dump(tiny.recipe(data=data, train=TRAIN)))
    return tmp_path


def forbid_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at a model with weights from now on."""
    init = DreamModel.__init__

    def build(self: DreamModel, **named: Any) -> None:
        init(self, **named)
        assert all(parameter.is_meta for parameter in self.parameters())

    monkeypatch.setattr(DreamModel, "__init__", build)


def test_check_prints_the_report_of_a_shipped_recipe(run, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_weights(monkeypatch)
    code, out, err = run("data", "check", "digits/stage2", "--samples", "5")
    assert (code, err) == (0, "")
    assert re.search(r"^data\.0 +digits +100,000 +5 +5 ", out, re.MULTILINE)
    assert re.search(
        r"^1 batch of 16 documents: [\d,]+ rows, [\d.]+% of their [\d,]+ tokens filled$", out, re.MULTILINE
    )
    assert re.search(r"^data\.0: sizes of images: 16 x 16 RGB \(\d+\)$", out, re.MULTILINE)


@pytest.mark.parametrize("command", ["check", "preview"])
def test_a_recipe_whose_paths_nobody_has_fails_with_all_of_them(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMKIT_DATA", str(tmp_path))
    code, out, err = run("data", command, "dreamllm/paper/stage2")
    heading = "the data of the recipe" if command == "check" else "the recipe"
    assert code == 2 and err.startswith(f"dreamkit: {heading} has 2 problems:\n")
    assert f"data.0: {tmp_path}/mmc4-core: no such file" in err
    assert f"data.1: {tmp_path}/blip-laion: no such file" in err
    assert not list(tmp_path.iterdir())
    assert ("mmc4" in out) == (command == "check")


def test_a_shipped_recipe_without_its_data_is_noted_by_check_and_refused_by_train(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMKIT_DATA", str(tmp_path))
    forbid_weights(monkeypatch)
    code, out, err = run("check", "dreamllm/paper/stage2")
    assert (code, err) == (0, "")
    _, _, notes = out.partition("note: train would refuse these inputs:\n")
    assert all(f"{tmp_path}/{name}: no such file" in notes for name in ("mmc4-core", "blip-laion"))
    code, out, err = run("train", "dreamllm/paper/stage2", "--out", "out")
    assert (code, out) == (2, "") and "the recipe has 2 problems" in err
    assert not list(tmp_path.iterdir())


def test_check_lists_every_problem_after_the_report_and_exits_with_code_2(run, folder: Path) -> None:
    with Path("pages.jsonl").open("a") as file:
        file.write('{"text": "<image>", "images": ["gone.png"]}\n')
    code, out, err = run("data", "check", "recipe.yaml", "--held-out", "talk.json")
    assert code == 2
    assert out.splitlines()[-1] == "2 documents with content of the 1 held-out document"
    assert err.splitlines()[0] == "dreamkit: the data of the recipe has 3 problems:"
    assert "pages.jsonl:2: no such image: " in err
    assert err.count("the same content is held out, as ") == 2


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("digits/stag2", "did you mean 'digits/stage2'?"),
        ("a/b", "known: digits/base, "),
        ("tlk.json", "did you mean 'talk.json'?"),
    ],
)
def test_held_out_data_that_do_not_exist_are_an_error_with_the_nearest_name(
    run, folder: Path, name: str, nearest: str
) -> None:
    code, _, err = run("data", "check", "recipe.yaml", "--held-out", name)
    expected = (
        f"expected a recipe, or a file or folder of data, got '{name}', which does not exist; {nearest}"
    )
    assert code == 2 and f"command line: --held-out: {expected}" in err


def test_check_prints_the_same_as_json(run, folder: Path) -> None:
    code, out, err = run("data", "check", "recipe.yaml", "--json", "--held-out", "talk.json")
    report = json.loads(out)
    assert code == 2 and "2 problems" in err
    assert [source["documents"] for source in report["sources"]] == [1, 1]
    assert [source["duplicates"] for source in report["sources"]] == [1, 1]
    assert [problem["key"] for problem in report["problems"]] == ["data.0", "data.1"]
    assert report["packing"]["documents"] == 10 and report["held_out"] == 1


def test_check_shows_a_few_of_many_alike_problems_and_json_has_all(run, folder: Path) -> None:
    lines = ['{"text": "a"}', *['{"text": "<image>", "images": ["cat.png"]}'] * 40]
    lines += [json.dumps({"text": "<image>", "images": [f"gone {n}.png"]}) for n in range(5)]
    Path("pages.jsonl").write_text("\n".join(lines) + "\n")
    code, out, err = run("data", "check", "recipe.yaml", "--held-out", "talk.json", "train.max_length=5")
    heading, misfit, *shown = err.splitlines()
    assert code == 2 and heading == "dreamkit: the recipe has 1 problem, and its data 46:"
    assert "train.max_length" in misfit
    assert out.splitlines()[-1] == "41 documents with content of the 1 held-out document"
    held = "the same content is held out, as "
    assert [held in line for line in shown] == [True] * 3 + [False] * 5 + [True]
    assert [line.strip() for line in shown if "more such" in line] == [
        "data.0: and 37 more such problems; --json lists all",
        "data.0: and 2 more such problems; --json lists all",
    ]
    code, out, _ = run("data", "check", "recipe.yaml", "--held-out", "talk.json", "--json")
    assert code == 2 and len(json.loads(out)["problems"]) == 46


def test_preview_writes_a_page_and_no_other_file(run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_weights(monkeypatch)
    before = set(folder.iterdir())
    code, out, err = run("data", "preview", "recipe.yaml", "-n", "3")
    assert (code, out, err) == (0, "", "wrote preview.html\n")
    assert set(folder.iterdir()) - before == {folder / "preview.html"}
    page = Path("preview.html").read_text()
    assert page.count("<article ") == 3 and "<h1>recipe.yaml</h1>" in page
    assert run("data", "preview", "recipe.yaml", "-n", "3", "--overwrite")[0] == 0
    assert Path("preview.html").read_text() == page


def test_preview_replaces_no_file_unless_told(run, folder: Path) -> None:
    Path("preview.html").write_text("mine")
    code, _, err = run("data", "preview", "recipe.yaml")
    assert code == 2 and "preview.html exists; replace it with --overwrite, or name another file" in err
    assert Path("preview.html").read_text() == "mine"
    code, _, err = run("data", "preview", "recipe.yaml", "--out", ".", "--overwrite")
    assert code == 2 and ". exists; name another file" in err


@pytest.mark.parametrize("recipe", ["recipe.yaml", "digits/stage3"])
@pytest.mark.parametrize("draw", [True, False])
def test_lines_of_a_preview_are_the_documents_of_training(run, folder: Path, recipe: str, draw: bool) -> None:
    registry = Registry.load()
    code, out, err = run("data", "preview", recipe, "-n", "8", "--jsonl")
    assert (code, err) == (0, "") and out.isascii()
    Path("written.jsonl").write_text(out)
    read = Interleaved(InterleavedConfig(Path("written.jsonl").absolute(), draw=draw))
    samples = open_run(load_recipe(recipe, (), registry), registry).samples
    expected = [document_hash(samples.document(place)) for place in range(8)]
    assert [document_hash(read[number]) for number in range(len(read))] == expected
    is_file = recipe == "recipe.yaml"
    assert (json.dumps(str(folder / "cat.png")) in out, "data:image/png" in out) == (is_file, not is_file)


def test_lines_of_a_preview_can_be_trained_on(run, folder: Path) -> None:
    code, _, err = run("data", "preview", "digits/stage3", "-n", "4", "--jsonl", "--out", "pages.jsonl")
    assert (code, err) == (
        2,
        "dreamkit: pages.jsonl exists; replace it with --overwrite, or name another file with --out\n",
    )
    assert run("data", "preview", "digits/stage3", "-n", "4", "--jsonl", "--out", "new.jsonl")[0] == 0
    changed = tiny.recipe(data=[{"name": "interleaved", "path": "new.jsonl"}], train=TRAIN)
    Path("new.yaml").write_text(yaml.safe_dump(changed))
    assert run("train", "new.yaml", "train.steps=1", "--out", "out")[0] == 0


def test_a_document_at_which_training_stops_is_an_error_of_jsonl_and_a_line_of_a_page(
    run, folder: Path
) -> None:
    Path("pages.jsonl").write_text('{"text": "a"}\n{"text": "<image>", "images": ["gone.png"]}\n')
    stop = ("train.on_error=stop", "-n", "10")
    code, _, err = run("data", "preview", "recipe.yaml", *stop)
    assert code == 0 and re.match(r"training would stop at \d documents?; the page has the reasons\n", err)
    code, out, err = run("data", "preview", "recipe.yaml", *stop, "--jsonl")
    assert code == 2 and "pages.jsonl:2: no such image" in err and out.count("\n") < 10
    code, _, _ = run("data", "preview", "recipe.yaml", *stop, "--jsonl", "--out", "lines.jsonl")
    assert code == 2 and not Path("lines.jsonl").exists()


def test_a_model_without_weights_makes_the_sequences_of_training(folder: Path) -> None:
    registry = Registry.load()
    recipe = load_recipe("recipe.yaml", (), registry)
    run, model = open_run(recipe, registry), build_model(recipe, registry)
    for place in range(4):
        expected = model.sequencer().sequence(run.samples.document(place))
        assert (run.samples[place].ids, run.samples[place].labels) == (expected.ids, expected.labels)
