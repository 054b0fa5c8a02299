"""Figures of POPE, MME and MMBench equal those of their code, as record_choices.py recorded them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from dreamkit import DreamkitError
from dreamkit_eval.metrics import mmbench, mme, pope

RECORDS = json.loads((Path(__file__).parent / "reference" / "choices.json").read_text("utf-8"))
YES_NO = st.sampled_from(["yes", "no"])


@pytest.mark.parametrize("name", ["pope", "pope unparsed"])
def test_figures_of_pope_equal_the_recorded_ones(name: str) -> None:
    record = RECORDS[name]
    figures = pope(record["answers"], record["labels"])
    assert {key: figures[key] for key in record["figures"]} == pytest.approx(record["figures"], abs=1e-6)


def test_figures_of_mme_equal_the_recorded_ones() -> None:
    record = RECORDS["mme"]
    figures = mme(record["correct"])
    scores = {category: 100 * each["score"] for category, each in figures["categories"].items()}
    assert scores == pytest.approx(record["scores"], abs=1e-6) and len(scores) == 14
    assert 100 * figures["perception"] == pytest.approx(record["perception"], abs=1e-6)
    assert 100 * figures["cognition"] == pytest.approx(record["cognition"], abs=1e-6)


def test_figures_of_mmbench_equal_the_recorded_ones() -> None:
    record = RECORDS["mmbench"]
    figures = mmbench(record["correct"], record["categories"])
    assert figures["overall"] == pytest.approx(record["overall"], abs=1e-6)
    assert figures["categories"] == pytest.approx(record["each"], abs=1e-6)


def test_the_yes_share_is_that_of_the_predictions() -> None:
    figures = pope(
        {"a": "Yes", "b": " yes ", "c": "yes", "d": "maybe"}, {"a": "yes", "b": "no", "c": "no", "d": "no"}
    )
    assert figures == pytest.approx(
        {"accuracy": 1 / 4, "precision": 1 / 3, "recall": 1, "f1": 1 / 2, "yes_share": 3 / 4}
    )


def test_a_figure_without_a_denominator_is_zero() -> None:
    assert pope(["no"], ["no"]) == {"accuracy": 1, "precision": 0, "recall": 0, "f1": 0, "yes_share": 0}


@given(st.lists(st.tuples(YES_NO, YES_NO), min_size=1))
def test_figures_of_pope_are_bounded_and_have_no_order(pairs: list) -> None:
    figures = pope([answer for answer, _ in pairs], [label for _, label in pairs])
    assert all(0 <= figure <= 1 for figure in figures.values())
    reverse = pairs[::-1]
    assert pope([answer for answer, _ in reverse], [label for _, label in reverse]) == figures


def test_accuracy_plus_needs_both_answers_about_an_image() -> None:
    figures = mme({"OCR": {1: [True, True], 2: [True, False]}, "code_reasoning": {1: [False, False]}})
    assert figures["categories"]["OCR"] == {"accuracy": 0.75, "accuracy_plus": 0.5, "score": 1.25}
    assert (figures["perception"], figures["cognition"]) == (1.25, 0)


def test_a_question_of_mmbench_is_right_in_every_rotation_or_wrong() -> None:
    correct = {1: [True, True], 2: [True, False], 3: [True], 4: [True]}
    figures = mmbench(correct, {1: "ocr", 2: "ocr", 3: "color", 4: "color"})
    assert figures == {"overall": 0.75, "categories": {"color": 1.0, "ocr": 0.5}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pope([], []), "expected at least one id in answers and labels, got none"),
        (
            lambda: pope({1: "yes"}, {1: "yes", 2: "no"}),
            "expected answers for every id of labels, got none for 1 id: 2",
        ),
        (
            lambda: pope(["yes", "no"], ["yes"]),
            "expected labels for every id of answers, got none for 1 id: 1",
        ),
        (lambda: pope(["yes"], ["maybe"]), r"label of id 0: expected 'yes' or 'no', got 'maybe' \(string\)"),
        (lambda: pope([True], ["yes"]), r"answer of id 0: expected a text, got true \(boolean\)"),
        (
            lambda: pope("yes", ["yes"]),
            r"answers: expected a dict of id to value, or a list, got 'yes' \(string\)",
        ),
        (lambda: mme({}), "expected a dict of at least one category of MME"),
        (lambda: mme({"ocr": {1: [True, True]}}), r"unknown category 'ocr' \(string\) of MME; "),
        (lambda: mme({"count": {}}), "category count: expected at least one image, got none"),
        (
            lambda: mme({"count": {"a.jpg": [True]}}),
            "category count, image a.jpg: expected answers to two questions",
        ),
        (lambda: mmbench({}, {}), "expected at least one id"),
        (
            lambda: mmbench({1: [True]}, {}),
            "expected categories for every id of answers, got none for 1 id: 1",
        ),
        (lambda: mmbench({1: []}, {1: "ocr"}), "expected an answer for each rotation, got none for 1 id: 1"),
        (
            lambda: mmbench([[True]], {0: "ocr"}),
            "correct: expected a dict by question, got a list of length 1",
        ),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(DreamkitError, match=message):
        call()
