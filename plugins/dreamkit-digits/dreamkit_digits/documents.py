"""The data set `digits`: documents of real handwriting, made of the lines of `phrases`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dreamkit import ConfigError, Dataset, Document, Image, Text, did_you_mean
from dreamkit_digits import digits, phrases
from dreamkit_digits.phrases import Line, Picture

DOCUMENTS = 100_000
"""Documents of one data set; each is a line and handwriting drawn at random."""
MOST_EXCHANGES = 2
"""Questions and requests in one conversation."""
GIVEN_OF_A_SUM = 3
"""The first pieces of a sum, "[2] plus [5]", are the question, which is not learned."""

Segments = tuple[Text | Image, ...]
Role = Literal["user", "assistant"]


class Scribe:
    """Writes lines of `phrases` as segments, in handwriting of one split, chosen by `rng`."""

    def __init__(self, split: digits.Split, rng: random.Random) -> None:
        self.rng = rng
        self._digits = digits.load(split)

    def write(self, line: Line, *, given: int = 0) -> Segments:
        """The segments of `line`; the text of its first `given` pieces is not learned."""
        return tuple(
            self.image(piece) if isinstance(piece, Picture) else Text(piece, train_on=number >= given)
            for number, piece in enumerate(line)
        )

    def image(self, piece: Picture) -> Image:
        """A picture of the digit. One that is drawn is read back too, as it is when a model writes."""
        index = self.rng.choice(self._digits.of(piece.digit).tolist())
        return Image(self._digits.image(index), draw=piece.drawn)


def reading(scribe: Scribe) -> Segments:
    """[7] is a seven."""
    return scribe.write(phrases.reading(scribe.rng.randrange(10)))


def drawing(scribe: Scribe) -> Segments:
    """A seven [7]."""
    return scribe.write(phrases.drawing(scribe.rng.randrange(10)))


def counting(scribe: Scribe) -> Segments:
    """Two [2] three [3] four [4]."""
    return scribe.write(phrases.counting(scribe.rng.choice(phrases.COUNTING_STARTS)))


def summing(scribe: Scribe) -> Segments:
    """[2] plus [5] is seven [7]; the pairs held out never come."""
    return scribe.write(phrases.summing(*scribe.rng.choice(phrases.TRAIN_PAIRS)), given=GIVEN_OF_A_SUM)


def chatting(scribe: Scribe) -> Segments:
    """A question about a picture, or a request for a drawing; then perhaps another."""
    segments: Segments = ()
    for _ in range(scribe.rng.randint(1, MOST_EXCHANGES)):
        wordings, make = scribe.rng.choice(
            ((phrases.QUESTIONS, phrases.asking), (phrases.REQUESTS, phrases.requesting))
        )
        turn = make(scribe.rng.randrange(10), scribe.rng.randrange(len(wordings)))
        segments += said("user", scribe.write(turn.user)) + said("assistant", scribe.write(turn.assistant))
    return segments


def said(role: Role, segments: Segments) -> Segments:
    """The segments as what `role` says in a conversation."""
    return tuple(replace(segment, role=role) for segment in segments)


KINDS: Mapping[str, Callable[[Scribe], Segments]] = {
    "reading": reading,
    "drawing": drawing,
    "counting": counting,
    "sums": summing,
    "chat": chatting,
}
"""What a recipe calls each kind of document."""


class Digits(Dataset):
    """Documents of real handwritten digits; document i depends on the config and i alone."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """`documents`: kinds of document (those of `KINDS`), and how often each comes against the others.

        `split`: "train", or "heldout" for handwriting that nothing is trained on.
        """

        documents: dict[str, float]
        split: digits.Split = "train"
        seed: int = 0

        def __post_init__(self) -> None:
            problems = {}
            for kind, weight in self.documents.items():
                if kind not in KINDS:
                    said = f"there is no kind of document '{kind}'; {did_you_mean(kind, KINDS)}"
                    problems[f"documents.{kind}"] = said
                elif not (weight > 0 and math.isfinite(weight)):
                    problems[f"documents.{kind}"] = f"{weight} found, but a weight is a positive number"
            if not self.documents:
                problems["documents"] = f"it is empty; name one kind or more of {', '.join(KINDS)}"
            if problems:
                raise ConfigError(problems)

    def __init__(self, config: Digits.Config) -> None:
        self.config = config
        digits.load(config.split)

    def __len__(self) -> int:
        return DOCUMENTS

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < DOCUMENTS:
            raise IndexError(f"document {index}, but they are numbered from 0 to {DOCUMENTS - 1}")
        rng = random.Random(f"{self.config.seed} {index}")
        kinds, weights = zip(*self.config.documents.items(), strict=True)
        kind = rng.choices(kinds, weights)[0]
        segments = KINDS[kind](Scribe(self.config.split, rng))
        return Document(segments, name=f"digits {self.config.split} {index}: {kind}")
