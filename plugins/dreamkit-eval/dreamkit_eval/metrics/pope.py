"""POPE: answers to "is there a ... in the image?"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Final, TypedDict

from dreamkit import describe_value, printable

from .pairs import by_id, id_problems, raise_problems

_YES_NO: Final = ("yes", "no")


class PopeFigures(TypedDict):
    """Figures of POPE, each in [0, 1]."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float


def pope(
    answers: Mapping[Hashable, str] | Sequence[str], labels: Mapping[Hashable, str] | Sequence[str]
) -> PopeFigures:
    """Return accuracy, precision, recall, F1 and yes-share of parsed answers; "yes" is the positive class.

    `answers` and `labels` are by id, or lists in the same order. Each is "yes" or "no", in any case and with spaces
    around it. Any other answer is wrong, as one that could not be parsed, and counts in accuracy and `yes_share` alone.
    Choose the parser before: the published one of LLaVA and POPE gives "yes" or "no" for any text.

    `yes_share` is the share of "yes" among all answers. (lmms-eval 0.7 has the share among the labels under this name.)
    A figure without a denominator is 0.

    Source: RUCAIBox/POPE, `evaluate.py`, commit 3df3ba1; for other answers and for the 0, EvolvingLMMs-Lab/lmms-eval,
    `lmms_eval/tasks/pope/utils.py`, commit 75571cf. Li et al., "Evaluating Object Hallucination in Large
    Vision-Language Models", arXiv 2305.10355.

    Raises:
        DreamkitError: ids differ, no answers, a label that is neither "yes" nor "no", or an answer that is not a text.
    """
    found, expected = by_id(answers, "answers"), by_id(labels, "labels")
    problems = id_problems(found, expected, ("answers", "labels"))
    for key, label in expected.items():
        if not isinstance(label, str) or _plain(label) not in _YES_NO:
            problems.append(
                f"label of id {printable(str(key))}: expected 'yes' or 'no', got {describe_value(label)}"
            )
    for key, answer in found.items():
        if not isinstance(answer, str):
            problems.append(
                f"answer of id {printable(str(key))}: expected a text, got {describe_value(answer)}"
            )
    raise_problems(problems)
    pairs = Counter((_plain(found[key]), _plain(label)) for key, label in expected.items())
    right = pairs["yes", "yes"]
    precision = _share(right, right + pairs["yes", "no"])
    recall = _share(right, right + pairs["no", "yes"])
    return {
        "accuracy": _share(right + pairs["no", "no"], pairs.total()),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_share": _share(right + pairs["yes", "no"], pairs.total()),
    }


def _plain(text: str) -> str:
    return text.strip().lower()


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
