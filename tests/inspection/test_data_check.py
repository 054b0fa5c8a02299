"""The report of a recipe's data: its numbers are those of training, and every problem is listed with its place."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

import odd_data
import tiny
from dreamkit.data.fingerprint import document_hash
from dreamkit.data.interleaved import Interleaved
from dreamkit.data.mixture import run_mixture
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.document import Document
from dreamkit.errors import DocumentError, RecipeError, StorageError
from dreamkit.inspection import data_check
from dreamkit.inspection.content_index import ContentIndex
from dreamkit.inspection.data_check import check_data
from dreamkit.inspection.data_report import DataReport
from dreamkit.inspection.preview import preview
from dreamkit.inspection.problem_text import problem_text
from dreamkit.inspection.report_tables import report_lines
from dreamkit.inspection.run_data import open_run
from dreamkit.recipe.loading import load_recipe, recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

TRAIN = {"trainable": ["visual_projector"], "steps": 5, "batch_size": 4, "max_length": 48}
REGISTRY = odd_data.registry()


def recipe(data: list[dict[str, Any]], **changes: Any) -> Recipe:
    train = {**TRAIN, **changes.pop("train", {})}
    return recipe_from_dict(tiny.recipe(data=data, train=train, **changes), REGISTRY, where="tiny")


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def check(data: list[dict[str, Any]], **settings: Any) -> DataReport:
    train = settings.pop("train", {})
    return check_data(recipe(data, train=train), REGISTRY, **settings)


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, Any]:
    for number in range(3):
        tiny.picture(number).save(tmp_path / f"{number}.png")
    records = [
        {"text": "first <image>", "images": ["0.png"]},
        {"text": "<image> second", "images": ["1.png"]},
        {"text": "only a text"},
        {"text": "<image> a </s> and <im_start> <image>", "images": ["1.png", "2.png"]},
    ]
    return {"name": "interleaved", "path": str(lines(tmp_path / "pages.jsonl", *records)), "draw": False}


def test_numbers_are_those_of_the_sequences(pages: dict[str, Any]) -> None:
    report = check([pages])
    (source,) = report.sources
    run = open_run(recipe([pages]), REGISTRY)
    documents = run.samples.order.data_sets[0]
    sequences = [run.sequencer.sequence(documents[n]) for n in range(4)]
    assert (source.documents, source.read, source.usable, source.too_long) == (4, 4, 4, 0)
    assert source.tokens == sum(map(len, sequences))
    assert source.longest == max(map(len, sequences))
    assert source.learned == sum(sequence.targets for sequence in sequences)
    assert (source.images_read, source.images_drawn) == (4, 0)
    assert source.image_tokens == 4 * (4 + 2)
    assert source.image_sizes == {"16 x 16 RGB": 4}
    assert source.example == "'first' [read 16 x 16]"
    assert report.problems == ()


def test_the_fill_is_that_of_the_batches_of_training(pages: dict[str, Any]) -> None:
    packing = check([pages], samples=8).packing
    assert packing is not None
    run = open_run(recipe([pages]), REGISTRY)
    mixture = run_mixture(run.recipe, run.samples.order.data_sets, 4)
    batches = [run.collator([mixture[4 * n + i] for i in range(4)]) for n in range(2)]
    assert (packing.batches, packing.documents) == (2, 8)
    assert packing.rows == sum(len(batch.input_ids_BT) for batch in batches)
    assert packing.tokens == sum(batch.input_ids_BT.numel() for batch in batches)
    assert packing.filled == sum(int((batch.segment_ids_BT >= 0).sum()) for batch in batches)


def test_special_tokens_in_texts_are_noted_with_their_documents(pages: dict[str, Any]) -> None:
    notes = check([pages]).notes
    place = f"{pages['path']}:4"
    assert [note for note in notes if "special token" in note] == [
        f"note: the special token '<im_start>' is plain text in 1 document, such as {place}",
        f"note: the special token '</s>' is plain text in 1 document, such as {place}",
    ]


def test_problems_of_all_sources_are_listed_together(tmp_path: Path, pages: dict[str, Any]) -> None:
    records = [
        {"text": "a"},
        {"text": "<image>", "images": ["gone.png"]},
        {"text": "<image>", "images": ["cut.png"]},
    ]
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:90])
    bad = {"name": "interleaved", "path": str(lines(tmp_path / "bad.jsonl", *records))}
    missing = {"name": "pairs", "path": str(tmp_path / "nowhere")}
    report = check([missing, pages, bad])
    assert [source.documents for source in report.sources] == [None, 4, 3]
    problems = [(problem.key, problem.message) for problem in report.problems]
    assert [key for key, _ in problems] == ["data.0", "data.2", "data.2"]
    assert "nowhere: no such file" in problems[0][1]
    assert problems[1][1].startswith(f"{tmp_path}/bad.jsonl:2: no such image")
    assert problems[2][1].startswith(f"{tmp_path}/bad.jsonl:3: ")
    assert report.packing is None


@pytest.mark.parametrize("name", sorted(cls.__name__.lower() for cls in odd_data.BROKEN))
def test_a_broken_data_set_of_a_plug_in_is_a_problem(name: str) -> None:
    report = check([{"name": name}])
    assert report.problems and all(problem.key.startswith("data.0") for problem in report.problems)


def test_parts_that_do_not_fit_are_listed_with_the_data(pages: dict[str, Any], tmp_path: Path) -> None:
    data = [pages, {"name": "pairs", "path": str(tmp_path / "nowhere")}]
    misfit = recipe(data, train={"max_length": 10_000})
    report = check_data(misfit, REGISTRY)
    assert [problem.key for problem in report.problems] == ["train.max_length", "data.1"]
    assert (report.sources[0].read, report.sources[0].usable) == (4, 0)


@pytest.mark.parametrize("policy", ["cut", "skip", "stop"])
def test_long_documents_are_counted_or_a_problem_by_the_recipe_s_policy(tmp_path: Path, policy: str) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "short"}, {"text": "long " * 30}, {"text": "short"})
    report = check([{"name": "interleaved", "path": str(path)}], train={"too_long": policy})
    (source,) = report.sources
    assert (source.read, source.usable, source.too_long) == (
        3,
        3 if policy == "cut" else 2,
        0 if policy == "stop" else 1,
    )
    assert source.long_example == (None if policy == "stop" else f"{path}:2 (151 tokens)")
    expected = [f"{path}:2: expected at most 48 tokens, got 151"] if policy == "stop" else []
    assert [problem.message.partition(";")[0] for problem in report.problems] == expected


@pytest.mark.parametrize("has_start", [True, False])
def test_a_row_holds_a_document_that_just_fits_and_no_token_more(tmp_path: Path, has_start: bool) -> None:
    tiny.picture(0).save(tmp_path / "a.png")
    registry = REGISTRY if has_start else Registry.load()

    def run(length: int, text: str = "") -> DataReport:
        path = lines(tmp_path / "a.jsonl", {"text": f"<image>{text}", "images": ["a.png"]})
        data = [{"name": "interleaved", "path": str(path)}]
        train = {**TRAIN, "max_length": length}
        if has_start:
            made = recipe_from_dict(tiny.recipe(data=data, train=train), registry, where="tiny")
        else:
            settings = (f"data={json.dumps(data)}", f"train.max_length={length}")
            made = load_recipe("digits/stage2", settings, registry)
        return check_data(made, registry)

    length = 5 + 6 + 2 if has_start else (4 + 2) + (16 + 2) + 1
    (source,) = run(length).sources
    assert (source.longest, source.too_long, source.usable) == (length, 0, 1)
    (source,) = run(length, "a").sources
    assert (source.long_example or "").endswith(f" ({length + 1} tokens)") and source.too_long == 1
    assert (source.longest, source.images_cut) == (length, 0)  # without the end token: the document goes on
    (problem,) = run(length - 1).problems
    ends = "<s> and </s> one each" if has_start else "</s> one"
    assert problem.key == "train.max_length" and f"{ends}, but a row has {length - 1}; " in problem.message


@pytest.mark.parametrize("policy", ["cut", "skip", "stop"])
def test_a_long_document_of_the_sample_becomes_tokens_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    long = "long " * 1000 + "text"
    path = lines(tmp_path / "a.jsonl", {"text": long}, {"text": "short"})
    data = [{"name": "interleaved", "path": str(path)}]
    cls = type(open_run(recipe(data), REGISTRY).sequencer.language_model)
    texts: list[str] = []
    tokenize = cls.tokenize
    monkeypatch.setattr(cls, "tokenize", lambda self, text: texts.append(text) or tokenize(self, text))
    monkeypatch.setattr(data_check._DataCheck, "pack", lambda self: None)  # reads the first places of a run
    check(data, train={"too_long": policy})
    assert texts.count(long) == 1 and sum(map(len, texts)) < 2 * len(long)


def test_images_that_are_cut_off_long_documents_are_counted(tmp_path: Path, pages: dict[str, Any]) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "long " * 30 + "<image>", "images": ["0.png"]})
    report = check([{"name": "interleaved", "path": str(path)}])
    (source,) = report.sources
    assert (source.too_long, source.images_cut, source.images_drawn) == (1, 2, 0)  # read and drawn
    listed = [line for line in report_lines(report) if isinstance(line, str)]
    expected = "data.0: 1 document longer than a row, with 2 images cut off (train.too_long), such as "
    assert f"{expected}{path}:1 ({source.long_example.split('(')[1]}" in listed


def test_a_sample_is_spread_over_the_data_set_and_all_reads_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path / "a.jsonl", *({"text": f"text {n}"} for n in range(40)))
    data = [{"name": "interleaved", "path": str(path)}]
    calls: list[tuple[str, int, int]] = []
    report = check(data, samples=4, on_progress=lambda *call: calls.append(call))
    assert (report.sources[0].documents, report.sources[0].read) == (40, 4)
    assert calls == [("documents of data.0", n, 4) for n in (1, 2, 3, 4)]
    assert check(data, samples=None).sources[0].read == 40
    monkeypatch.setattr(data_check, "MOST_PROBLEMS", 3)
    path = lines(tmp_path / "b.jsonl", {"text": "a"}, *[{"text": "<image>", "images": ["gone"]}] * 9)
    report = check([{"name": "interleaved", "path": str(path)}], samples=None)
    assert len(report.problems) == 3 and report.unlisted == {"data.0": 6}
    assert problem_text(report.problems, report.unlisted).startswith("the data of the recipe has 9 problems:")


def pairs(folder: Path, *pictures: PIL.Image.Image, kind: str = "png") -> Path:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.{kind}")
        (folder / f"{number}.txt").write_text(f"{folder.name} {number}")
    return folder


def test_images_of_training_that_are_held_out_are_found_by_their_content(tmp_path: Path) -> None:
    train = pairs(tmp_path / "train", *(tiny.picture(n) for n in range(5)))
    held = pairs(tmp_path / "held", *(tiny.picture(n) for n in (9, 3, 8, 1)), kind="bmp")  # the same pixels
    report = check([{"name": "pairs", "path": str(train)}], held_out=str(held))
    assert report.held_out == 4 and report.sources[0].duplicates == 2
    assert [problem.message for problem in report.problems] == [
        f"{train}/{ours}.png: the same content is held out, as '{held}/{theirs}.bmp'; remove one of the two"
        for ours, theirs in ((1, 3), (3, 1))
    ]


def test_the_held_out_section_of_a_recipe_is_compared_without_an_option(tmp_path: Path) -> None:
    held = lines(
        tmp_path / "h.jsonl", {"text": "seen"}, {"text": "new"}, {"text": "<image>", "images": ["no.png"]}
    )
    train = lines(tmp_path / "t.jsonl", {"text": "own"}, {"text": "Seen"}, {"text": "named"})
    named = lines(tmp_path / "n.jsonl", {"text": "named"})
    section = [{"name": "interleaved", "path": str(held)}]
    evaluated = recipe(
        [{"name": "interleaved", "path": str(train)}], held_out=section, train={"eval_every": 5}
    )
    report = check_data(evaluated, REGISTRY, held_out=str(named))
    assert report.held_out == 3 and report.sources[0].duplicates == 2
    missing, *shared = report.problems
    assert missing.key == "held_out.0" and "no.png" in missing.message
    assert [each.message for each in shared] == [
        f"{train}:2: the same content is held out, as '{held}:1'; remove one of the two",
        f"{train}:3: the same content is held out, as '{named}:1'; remove one of the two",
    ]


def test_texts_count_only_in_documents_without_images(tmp_path: Path) -> None:
    tiny.picture(0).save(tmp_path / "a.png")
    tiny.picture(1).save(tmp_path / "b.png")
    train = lines(tmp_path / "t.jsonl", {"text": "A  cat <image>", "images": ["a.png"]}, {"text": "A\nCat"})
    held = lines(tmp_path / "h.jsonl", {"text": "a cat <image>", "images": ["b.png"]}, {"text": "a cat"})
    data = [{"name": "interleaved", "path": str(train)}]
    messages = [problem.message for problem in check(data, held_out=str(held)).problems]
    assert messages == [f"{train}:2: the same content is held out, as '{held}:2'; remove one of the two"]


def test_held_out_data_may_be_a_recipe(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "train", tiny.picture(0))
    (tmp_path / "held.yaml").write_text(json.dumps(tiny.recipe(data=[{"name": "pairs", "path": "train"}])))
    report = check([{"name": "pairs", "path": str(folder)}], held_out=str(tmp_path / "held.yaml"))
    assert report.held_out == 1 and len(report.problems) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tran",
            "expected a recipe, or a file or folder of data, got 'tran', which does not exist; did you mean 'train'?",
        ),
        ("od.yaml", "got 'od.yaml', which does not exist; did you mean 'odd.yaml'?"),
        ("empty.jsonl", "no data set can read empty.jsonl; as pairs: "),
        ("bare.yaml", "the recipe bare.yaml has no data"),
        ("odd.yaml", "nowhere.jsonl: no such file"),
    ],
)
def test_held_out_data_that_cannot_be_opened_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("bare.yaml").write_text(json.dumps(tiny.recipe()))
    Path("odd.yaml").write_text(json.dumps(tiny.recipe(data=[{"name": "pairs", "path": "nowhere.jsonl"}])))
    folder = pairs(tmp_path / "train", tiny.picture(0))
    report = check([{"name": "pairs", "path": str(folder)}], held_out=name)
    assert report.held_out is None
    assert len(report.problems) == 1 and message in report.problems[0].message


def test_a_part_of_large_held_out_data_is_read_unless_all_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_check, "MOST_HELD_OUT", 2)
    held = lines(tmp_path / "h.jsonl", *({"text": f"text {n}"} for n in range(4)))
    data = [{"name": "interleaved", "path": str(held)}]
    sampled, whole = (check(data, samples=samples, held_out=str(held)) for samples in (4, None))
    assert "note: compared with 2 of 4 held-out documents; --all reads all of them" in sampled.notes
    assert [len(report.problems) for report in (sampled, whole)] == [2, 4]


def test_an_index_finds_each_of_its_contents_and_no_other(tmp_path: Path) -> None:
    index = ContentIndex()
    dataset = Pairs(PairsConfig(pairs(tmp_path / "held", *(tiny.picture(n, 4) for n in range(60)))))
    for number in range(0, 60, 2):
        index.add(number, dataset[number])
    found = [index.find(dataset[number]) for number in range(60)]
    assert found == [None if number % 2 else number for number in range(60)]
    assert len({document_hash(dataset[n]) for n in range(60)}) == 60


def test_a_tokenizer_that_loses_the_texts_is_noted(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "a page of text"})
    vicuna = {"model.language_model": {"name": "vicuna", "pretrained": "lmsys/vicuna-7b-v1.1"}}
    known = recipe([{"name": "interleaved", "path": str(path)}], train={"max_length": 128}, **vicuna)
    notes = check_data(known, REGISTRY).notes
    assert any(
        "the tokenizer loses text of 1 document of 1, such as 'a page of text'" in note for note in notes
    )


def test_open_run_lists_every_problem(tmp_path: Path) -> None:
    misfit = recipe([{"name": "pairs", "path": str(tmp_path / "nowhere")}], train={"max_length": 10_000})
    with pytest.raises(RecipeError) as error:
        open_run(misfit, Registry.load())
    assert [problem.key for problem in error.value.problems] == ["train.max_length", "data.0"]


def test_a_disk_that_fails_ends_the_reading_of_its_data_set(
    pages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    reads: list[int] = []
    read = Interleaved.__getitem__

    def fail(self: Interleaved, index: int) -> Document:
        reads.append(index)
        if index:
            raise StorageError(f"{index}: the disk fails")
        return read(self, index)

    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr(Interleaved, "__getitem__", fail)
    report = check([pages, {"name": "words"}])
    messages = [problem.message for problem in report.problems if problem.key == "data.0"]
    assert messages == ["1: the disk fails; no more of its documents were read"]
    assert [source.usable for source in report.sources] == [1, 3]
    assert reads.count(1) >= 5 and reads.count(3) <= 5 and set(waits) == {1, 2, 4, 8}


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_a_bad_first_document_hides_no_other(tmp_path: Path, policy: str) -> None:
    records = [{"text": "<image>", "images": [f"{name}.png"]} for name in "ab"]
    path = lines(tmp_path / "bad.jsonl", *records, {"text": "good"})
    report = check([{"name": "interleaved", "path": str(path)}], train={"on_error": policy})
    assert [problem.message.partition(": no such image")[0] for problem in report.problems] == [
        f"{path}:1",
        f"{path}:2",
    ]
    assert (report.sources[0].documents, report.sources[0].usable) == (3, 1)


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_a_place_at_which_training_stops_is_a_problem_of_its_data_set(
    pages: dict[str, Any], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    def choose(self: Interleaved, index: int, choices: object) -> Document:
        raise DocumentError(
            f"pages:{index}: no caption to choose from"
        )  # which a document of a check needs not

    monkeypatch.setattr(Interleaved, "sample", choose)
    report = check([{"name": "words"}, pages], train={"on_error": policy})
    assert [source.usable for source in report.sources] == [3, 4]
    (problem,) = report.problems
    assert problem.key == "data.1"
    assert (
        problem.message.startswith("training stops at place ") and "no caption to choose" in problem.message
    )


def test_no_more_than_a_few_images_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[weakref.ref[Any]] = []
    most = 0
    read = Pairs.__getitem__

    def note(self: Pairs, index: int) -> Document:
        nonlocal most
        document = read(self, index)
        pictures.extend(weakref.ref(image.picture) for image in document.images)
        most = max(most, sum(picture() is not None for picture in pictures))
        return document

    monkeypatch.setattr(Pairs, "__getitem__", note)
    folder = pairs(tmp_path / "train", *(tiny.picture(n) for n in range(30)))
    data = [{"name": "pairs", "path": str(folder)}]
    large = recipe(data, train={"batch_size": 30})
    assert check_data(large, REGISTRY).sources[0].usable == 30
    assert preview(large, REGISTRY, 20, title="pairs")[0].count("<article") == 20
    assert len(pictures) >= 30 + 30 + 20 and most <= 6
