"""The benchmarks of generation run, their candidates do the same work, and documents keep to their course."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import generation, turns
from benchmarks.generation import Case, Generation, same_work
from benchmarks.turns import Seconds
from benchmarks.written_models import Course, measured_model, on_course, prompts
from dreamkit import DocumentDone, ImageDone, TextPiece

# diffusers' schedulers convert tensors in ways that NumPy 2 warns of, and its pipeline warns of a scheduler's setting
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]


def rows(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> list[list[str]]:
    """Run a benchmark by its command line; return the cells of its table."""
    monkeypatch.setattr(sys, "argv", [module, *options])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    importlib.import_module(f"benchmarks.{module}").main()
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in lines} == {head.count("|")}
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_documents_draw_and_end_at_the_positions_of_their_course() -> None:
    model, course = measured_model("digits"), Course(30, 60, 70, 120)
    documents = prompts(model, course, 3)
    lengths = [len(model.sequencer().prompt(document).ids) for document in documents]
    assert len({*lengths}) == 3 and all(course.least <= length <= course.most for length in lengths)
    image = 4 + len(model.dream_queries) + model.visual_projector.spec.out_tokens
    with on_course(model, course):
        events = [*model.generate(documents, max_tokens=120, max_images=1, steps=1)]
    assert [event.reason for event in events if isinstance(event, DocumentDone)] == ["end"] * 3
    assert sum(isinstance(event, ImageDone) for event in events) == 3
    for number, length in enumerate(lengths):
        written = [
            len(event.ids) for event in events if isinstance(event, TextPiece) and event.document == number
        ]
        assert length + sum(written) + image == course.end + 1


def test_another_checkout_takes_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = str(Path(generation.__file__).parents[2])
    options = ("--small", "--rounds", "1", "--only", "digits-text", "--documents", "2", "--before", here)
    table = rows("generation", monkeypatch, capsys, *options)
    assert [cells[3] for cells in table] == [generation.TOGETHER, generation.ALONE, generation.BEFORE]


def test_candidates_that_do_other_work_are_refused() -> None:
    run, case = Generation().run, Case("llama", "text", 2, small=True)
    runs = {
        "two": lambda: run(case, True),
        "one": lambda: run(Case("llama", "text", 1, small=True), True),
    }
    candidates = same_work(runs)
    assert candidates["two"]().cpu > 0
    with pytest.raises(ValueError, match=r"one: expected \{'documents': 2, .*\}, got \{'documents': 1,"):
        candidates["one"]()


def test_ours_and_transformers_write_the_same_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--small", "--tokens", "12", "--length", "8", "--rounds", "1")
    table = rows("greedy_text", monkeypatch, capsys, *options)
    assert [cells[:3] for cells in table] == [
        [model, "12", candidate] for model in ("digits", "llama") for candidate in ("ours", "transformers")
    ]


def test_ours_and_the_pipeline_draw_the_same_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows("pipeline_drawing", monkeypatch, capsys, "--only", "digits", "--steps", "3", "--rounds", "1")
    assert [cells[1] for cells in table] == ["ours", "StableDiffusionPipeline"]


def test_candidates_take_turns_and_are_compared_within_a_round() -> None:
    calls = []
    times = {"a": iter([2.0, 8.0, 3.0]), "b": iter([1.0, 2.0, 2.0])}

    def candidate(name: str) -> Seconds:
        calls.append(name)
        return Seconds(next(times[name]), 1.0)

    rounds = turns.take_turns({name: lambda name=name: candidate(name) for name in times}, 3)
    assert "".join(calls) == "abbaab"
    assert turns.medians(rounds, "a") == (3.0, 1.0)
    assert turns.excess(rounds, "a", "b", 0) == "+100.0 % (+75.0 to +200.0)"
    assert turns.excess(rounds, "a", "b", 1) == "+0.0 % (+0.0 to +0.0)"
