"""MMBench: multiple choice, asked once or in every rotation of the choices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import TypedDict

from dreamkit import DreamkitError, describe_value

from .pairs import id_problems, named, raise_problems


class MmbenchFigures(TypedDict):
    """Shares of right questions, in [0, 1]: of all, and of each category by name."""

    overall: float
    categories: dict[str, float]


def mmbench(correct: Mapping[Hashable, Sequence[bool]], categories: Mapping[Hashable, str]) -> MmbenchFigures:
    """Return the share of right questions of MMBench, overall and of each category.

    `correct` says for each question and rotation of its choices whether the answer is right. Circular evaluation asks a
    question once for each choice, with the choices moved by one place each time; the question is right only if all of
    its answers are. A single answer for each question gives the vanilla accuracy.

    `categories` has a question's category. Pass other ones, such as those of level 2, for their shares. The overall
    share is that of questions, not the mean of the categories.

    Source: EvolvingLMMs-Lab/lmms-eval, `lmms_eval/tasks/mmbench/mmbench_evals.py`, commit 75571cf, after the code of
    MMBench. Liu et al., "MMBench: Is Your Multi-modal Model an All-around Player?", arXiv 2307.06281.

    Raises:
        DreamkitError: ids differ, no questions, or a question without answers.
    """
    for name, values in (("correct", correct), ("categories", categories)):
        if not isinstance(values, Mapping):
            raise DreamkitError(f"{name}: expected a dict by question, got {describe_value(values)}")
    problems = id_problems(categories, correct, ("categories", "answers"))
    if empty := [question for question, right in correct.items() if not right]:
        problems.append(
            f"expected an answer for each rotation, got none for {named(empty)}; add them, or remove these ids"
        )
    raise_problems(problems)
    of_category: defaultdict[str, list[bool]] = defaultdict(list)
    for question, right in correct.items():
        of_category[categories[question]].append(all(right))
    return {
        "overall": fmean(right for rights in of_category.values() for right in rights),
        "categories": {name: fmean(rights) for name, rights in sorted(of_category.items())},
    }
