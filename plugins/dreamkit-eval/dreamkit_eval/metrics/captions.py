"""Captions and their references as n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dreamkit import describe_value, printable

from .pairs import id_problems, named, raise_problems
from .penn_treebank import caption_tokens

MOST_WORDS: Final = 4  # of an n-gram
Gram = tuple[str, ...]


@dataclass(frozen=True)
class Grams:
    """The n-grams of a caption of n = 1 to 4 words with their counts, and its length in words."""

    length: int
    counts: Counter[Gram]


@dataclass(frozen=True)
class Scored:
    """A predicted caption and its references, by id."""

    id: Hashable
    prediction: Grams
    references: tuple[Grams, ...]


def scored_captions(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]
) -> list[Scored]:
    """Return the n-grams of captions and their references, in the order of `references`.

    Raises:
        DreamkitError: ids differ, an id without references, or values that are not texts.
    """
    _check(predictions, references)
    predicted = _grams([predictions[key] for key in references])
    others = iter(_grams([text for texts in references.values() for text in texts]))
    return [
        Scored(key, prediction, tuple(next(others) for _ in references[key]))
        for key, prediction in zip(references, predicted, strict=True)
    ]


def _grams(captions: Sequence[str]) -> list[Grams]:
    # A token with a no-break space, such as "2 1/2", is two words here: pycocoevalcap joins and splits its tokens.
    return [_counted(" ".join(tokens).split()) for tokens in caption_tokens(captions)] if captions else []


def _counted(words: Sequence[str]) -> Grams:
    starts = ((n, start) for n in range(1, MOST_WORDS + 1) for start in range(len(words) - n + 1))
    return Grams(len(words), Counter(tuple(words[start : start + n]) for n, start in starts))


def _check(predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> None:
    for name, values in (("predictions", predictions), ("references", references)):
        if not isinstance(values, Mapping):
            raise_problems([f"{name}: expected a dict of id to text, got {describe_value(values)}"])
    problems = id_problems(predictions, references, ("predictions", "references"))
    for key, text in predictions.items():
        if not isinstance(text, str):
            problems.append(
                f"prediction of id {printable(str(key))}: expected a text, got {describe_value(text)}"
            )
    for key, texts in references.items():
        if (
            isinstance(texts, str)
            or not isinstance(texts, Sequence)
            or not all(isinstance(t, str) for t in texts)
        ):
            problems.append(
                f"references of id {printable(str(key))}: expected a list of texts, got "
                f"{describe_value(texts)}; write [...] around a single one"
            )
    if empty := [key for key, texts in references.items() if not texts]:
        problems.append(
            f"expected at least one reference for each id, got none for {named(empty)}; add one, or remove them"
        )
    raise_problems(problems)
