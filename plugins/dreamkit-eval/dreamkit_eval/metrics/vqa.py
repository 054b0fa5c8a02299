"""Accuracy of answers to visual questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

from dreamkit import DreamkitError, describe_value, did_you_mean

from .contractions import CONTRACTIONS

Rules = Literal["official", "official-2016", "lmms-eval", "evalai"]
_ENOUGH: Final = 3  # matching answers for full accuracy
_NUMBERS: Final = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES: Final = {"a", "an", "the"}
_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD: Final = re.compile(r"\.(?!\d)")
# The sources pass the flag re.UNICODE as the number of substitutions, so that only the first 32 periods are removed.
_MOST_PERIODS: Final = int(re.UNICODE)


def vqa_accuracy(answer: str, answers: Sequence[str], rules: Rules = "official") -> float:
    """Return the accuracy of a predicted `answer`, in [0, 1], given the people's `answers`, ten in the benchmarks.

    The accuracy is the mean of min(1, matches / 3) over the subsets of `answers` that leave one out. Two texts match if
    they are equal after the normalization of `rules`:

    - `official`: both sides lose line breaks, tabs and outer spaces. Only if the answers then differ from each other,
      both sides lose punctuation and articles, words from zero to ten become digits, and contractions get apostrophes.
      Letter case counts if the answers are equal.
      Source: GT-Vision-Lab/VQA, `PythonEvaluationTools/vqaEvaluation/vqaEval.py`, commit a013f00 (2021).
    - `official-2016`: the prediction is always normalized. The answers lose only punctuation, and only if they differ.
      Source: the same file, commit 458a8b2.
    - `lmms-eval`: both sides are always normalized.
      Source: EvolvingLMMs-Lab/lmms-eval, `lmms_eval/tasks/vqav2/utils.py`, commit 75571cf.
    - `evalai`: as `lmms-eval`, after lower-casing, removing "," and "?", and separating "'s". OKVQA, TextVQA and VizWiz
      are commonly scored so.
      Source: the same repository and commit, `lmms_eval/tasks/_task_utils/vqa_eval_metric.py`, a copy of
      `EvalAIAnswerProcessor` of facebookresearch/mmf, commit c46b3b3.

    Raises:
        DreamkitError: no answers, a value that is not a text, or unknown rules.
    """
    if rules not in get_args(Rules):
        raise DreamkitError(f"unknown rules {describe_value(rules)}; {did_you_mean(rules, get_args(Rules))}")
    if isinstance(answers, str) or not isinstance(answers, Sequence) or not answers:
        raise DreamkitError(f"answers: expected a list of at least one text, got {describe_value(answers)}")
    for text in (answer, *answers):
        if not isinstance(text, str):
            raise DreamkitError(f"expected a text for each answer, got {describe_value(text)}")
    prediction, people = _NORMALIZED[rules](answer, list(answers))
    matches = people.count(prediction)
    left_out = [min(1.0, (matches - (text == prediction)) / _ENOUGH) for text in people]
    return sum(left_out) / len(left_out)


def _official(answer: str, answers: list[str]) -> tuple[str, list[str]]:
    answer, answers = _one_line(answer), list(map(_one_line, answers))
    if len(set(answers)) > 1:
        return _in_words(_without_punctuation(answer)), [
            _in_words(_without_punctuation(text)) for text in answers
        ]
    return answer, answers


def _official_2016(answer: str, answers: list[str]) -> tuple[str, list[str]]:
    if len(set(answers)) > 1:
        answers = list(map(_without_punctuation, answers))
    return _in_words(_without_punctuation(_one_line(answer))), answers


def _lmms_eval(answer: str, answers: list[str]) -> tuple[str, list[str]]:
    first, *others = (
        _in_words(_without_punctuation(_one_line(text), r"\d,+\d")) for text in (answer, *answers)
    )
    return first, others


def _evalai(answer: str, answers: list[str]) -> tuple[str, list[str]]:
    def words(text: str) -> str:
        return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()

    return _lmms_eval(words(answer), list(map(words, answers)))


_NORMALIZED: Final[dict[str, Callable[[str, list[str]], tuple[str, list[str]]]]] = {
    "official": _official,
    "official-2016": _official_2016,
    "lmms-eval": _lmms_eval,
    "evalai": _evalai,
}


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str, comma: str = r"\d,\d") -> str:
    """Remove punctuation beside a space, and all of it if `comma` is in the text; other punctuation becomes a space."""
    number = re.search(comma, text) is not None
    result = text
    for mark in _PUNCTUATION:
        beside = number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _in_words(text: str) -> str:
    """Lower-case a text, write numbers as digits, remove articles, and add apostrophes to contractions."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
