"""Accuracies of answers equal those of the official code and of lmms-eval, as record_vqa.py recorded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, strategies as st

from dreamkit import DreamkitError
from dreamkit_eval.metrics import vqa_accuracy
from dreamkit_eval.metrics.vqa import Rules

RECORDS = json.loads((Path(__file__).parent / "reference" / "vqa.json").read_text("utf-8"))
RULES = get_args(Rules)
TEXT = st.sampled_from(["yes", "no", "Yes.", "two", "2", "a dog", "dog", "dont", "don't", "1,000", ""])


@pytest.mark.parametrize("rules", RULES)
def test_accuracies_equal_the_recorded_ones(rules: Rules) -> None:
    differing = [
        record
        for record in RECORDS
        if abs(vqa_accuracy(record["answer"], record["answers"], rules) - record[rules]) > 1e-6
    ]
    assert differing == []


def test_the_rules_differ_on_the_recorded_answers() -> None:
    figures = [tuple(record[rules] for record in RECORDS) for rules in RULES]
    assert len(set(figures)) == len(RULES) == 4


@pytest.mark.parametrize(
    ("answer", "answers", "rules", "expected"),
    [
        ("cat", ["cat"] * 4 + ["dog"] * 6, "official", 1.0),
        ("cat", ["cat"] * 3 + ["dog"] * 7, "official", 0.9),
        ("cat", ["cat"] * 2 + ["dog"] * 8, "official", 0.6),
        ("cat", ["cat"] + ["dog"] * 9, "official", 0.3),
        ("Yes", ["yes"] * 10, "official", 0.0),
        ("Yes", ["yes"] * 10, "official-2016", 1.0),
        ("Yes", ["yes"] * 9 + ["no"], "official", 1.0),
        ("the cat", ["the cat"] * 10, "official-2016", 0.0),
        ("dog's", ["dog 's"] * 10, "lmms-eval", 0.0),
        ("dog's", ["dog 's"] * 10, "evalai", 1.0),
    ],
)
def test_an_accuracy_computed_by_hand(answer: str, answers: list, rules: Rules, expected: float) -> None:
    assert vqa_accuracy(answer, answers, rules) == pytest.approx(expected)


@given(
    TEXT, st.lists(TEXT, min_size=1, max_size=12), st.sampled_from(RULES), st.randoms(use_true_random=False)
)
def test_an_accuracy_is_bounded_and_has_no_order(answer: str, answers: list, rules: Rules, random) -> None:
    accuracy = vqa_accuracy(answer, answers, rules)
    assert 0 <= accuracy <= 1
    assert vqa_accuracy(answer, random.sample(answers, len(answers)), rules) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "answers", "rules", "message"),
    [
        ("a", [], "official", "answers: expected a list of at least one text, got a list of length 0"),
        ("a", "a", "official", r"answers: expected a list of at least one text, got 'a' \(string\)"),
        (None, ["a"], "official", "expected a text for each answer, got null"),
        ("a", ["a", 2], "official", r"expected a text for each answer, got 2 \(integer\)"),
        ("a", ["a"], "offical", r"unknown rules 'offical' \(string\); did you mean 'official'\?"),
    ],
)
def test_bad_input_is_refused(answer, answers, rules, message: str) -> None:
    with pytest.raises(DreamkitError, match=message):
        vqa_accuracy(answer, answers, rules)
