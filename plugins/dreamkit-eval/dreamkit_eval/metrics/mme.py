"""MME: two questions about each image, in fourteen categories."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Final, TypedDict

from dreamkit import DreamkitError, describe_value, did_you_mean, printable

from .pairs import raise_problems

PERCEPTION: Final = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION: Final = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_QUESTIONS: Final = 2  # about each image


class MmeCategory(TypedDict):
    """Figures of a category; `score` is the sum of the two others, in [0, 2]."""

    accuracy: float
    accuracy_plus: float
    score: float


class MmeFigures(TypedDict):
    """Figures of MME: each category, and the sums of their scores, in [0, 20] and [0, 8]."""

    categories: dict[str, MmeCategory]
    perception: float
    cognition: float


def mme(correct: Mapping[str, Mapping[Hashable, Sequence[bool]]]) -> MmeFigures:
    """Return accuracy and accuracy+ of each category of MME, and the sums for perception and cognition.

    `correct` says for each category and image whether the answers to its two questions are right. Accuracy is the share
    of right answers, accuracy+ the share of images with two of them. A category's score is their sum. Times 100, it is
    what MME prints, and the sums are those of its leaderboard: at most 2000 and 800.

    A sum has the categories that `correct` has. It is comparable with the leaderboard only if these are all.

    Source: BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation, `calculation.py` in
    `tools/eval_tool.zip`, commit dd29509. Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large
    Language Models", arXiv 2306.13394.

    Raises:
        DreamkitError: an unknown category, one without images, or an image without exactly two answers.
    """
    if not isinstance(correct, Mapping) or not correct:
        raise DreamkitError(f"expected a dict of at least one category of MME, got {describe_value(correct)}")
    problems = []
    for category, images in correct.items():
        if category not in PERCEPTION + COGNITION:
            problems.append(
                f"unknown category {describe_value(category)} of MME; {did_you_mean(category, PERCEPTION + COGNITION)}"
            )
        elif not images:
            problems.append(
                f"category {category}: expected at least one image, got none; add some, or remove it"
            )
        problems += [
            f"category {printable(str(category))}, image {printable(str(image))}: expected answers to two questions, "
            f"got {describe_value(list(right))}"
            for image, right in images.items()
            if len(right) != _QUESTIONS
        ]
    raise_problems(problems)
    categories = {category: _figures(list(images.values())) for category, images in correct.items()}
    return {
        "categories": categories,
        "perception": sum(figures["score"] for name, figures in categories.items() if name in PERCEPTION),
        "cognition": sum(figures["score"] for name, figures in categories.items() if name in COGNITION),
    }


def _figures(images: Sequence[Sequence[bool]]) -> MmeCategory:
    accuracy = fmean(bool(right) for image in images for right in image)
    plus = fmean(all(image) for image in images)
    return {"accuracy": accuracy, "accuracy_plus": plus, "score": accuracy + plus}
