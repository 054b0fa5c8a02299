"""The data set `digits`: documents of real handwriting, from the lines of `phrases`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dreamkit import ConfigError, Dataset, Document, Image, Text, did_you_mean
from dreamkit_digits import digits, phrases
from dreamkit_digits.phrases import Line, Picture

DOCUMENTS = 100_000
"""Documents of one data set. Each is a random line in random handwriting."""
MOST_EXCHANGES = 2
"""Questions and requests in one conversation."""
QUESTION_PIECES = 3
"""Pieces of a sum that are its question, "[2] plus [5]", and are not trained on."""

Segments = tuple[Text | Image, ...]
Role = Literal["user", "assistant"]


class Scribe:
    """A writer of lines as segments, in handwriting of one split that `rng` chooses."""

    def __init__(self, split: digits.Split, rng: random.Random) -> None:
        self.rng = rng
        self._digits = digits.load(split)

    def write(self, line: Line, *, question_pieces: int = 0) -> Segments:
        """Return the segments of `line`. Text of its first `question_pieces` pieces is not trained on."""
        return tuple(
            self.image(piece)
            if isinstance(piece, Picture)
            else Text(piece, train_on=number >= question_pieces)
            for number, piece in enumerate(line)
        )

    def image(self, piece: Picture) -> Image:
        """Return an image of the digit. A drawn image is also read back, as in generation."""
        index = self.rng.choice(self._digits.of(piece.digit).tolist())
        return Image(self._digits.image(index), draw=piece.drawn)


def reading(scribe: Scribe) -> Segments:
    """Write "[7] is a seven"."""
    return scribe.write(phrases.reading(scribe.rng.randrange(10)))


def drawing(scribe: Scribe) -> Segments:
    """Write "a seven [7]"."""
    return scribe.write(phrases.drawing(scribe.rng.randrange(10)))


def counting(scribe: Scribe) -> Segments:
    """Write "two [2] three [3] four [4]"."""
    return scribe.write(phrases.counting(scribe.rng.choice(phrases.COUNTING_STARTS)))


def summing(scribe: Scribe) -> Segments:
    """Write "[2] plus [5] is seven [7]". Held-out pairs never occur."""
    return scribe.write(
        phrases.summing(*scribe.rng.choice(phrases.TRAIN_PAIRS)), question_pieces=QUESTION_PIECES
    )


def chatting(scribe: Scribe) -> Segments:
    """Write one or two exchanges: a question about an image, or a request to draw one."""
    segments: Segments = ()
    for _ in range(scribe.rng.randint(1, MOST_EXCHANGES)):
        wordings, make = scribe.rng.choice(
            ((phrases.QUESTIONS, phrases.question), (phrases.REQUESTS, phrases.request))
        )
        turn = make(scribe.rng.randrange(10), scribe.rng.randrange(len(wordings)))
        segments += as_role("user", scribe.write(turn.user))
        segments += as_role("assistant", scribe.write(turn.assistant))
    return segments


def as_role(role: Role, segments: Segments) -> Segments:
    """Return the segments as those of `role` in a conversation."""
    return tuple(replace(segment, role=role) for segment in segments)


KINDS: Mapping[str, Callable[[Scribe], Segments]] = {
    "reading": reading,
    "drawing": drawing,
    "counting": counting,
    "sums": summing,
    "chat": chatting,
}
"""The kinds of document by their names in a recipe."""


class Digits(Dataset):
    """Documents of real handwritten digits. Document i depends only on the config and i."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """`documents`: kinds of document (those of `KINDS`) and their relative frequencies.

        `split`: "train", or "heldout" for handwriting that no part is trained on.
        """

        documents: dict[str, float]
        split: digits.Split = "train"
        seed: int = 0

        def __post_init__(self) -> None:
            problems = {}
            for kind, weight in self.documents.items():
                if kind not in KINDS:
                    problems[f"documents.{kind}"] = (
                        f"unknown kind of document '{kind}'; {did_you_mean(kind, KINDS)}"
                    )
                elif not (weight > 0 and math.isfinite(weight)):
                    problems[f"documents.{kind}"] = f"expected a positive number, got {weight}"
            if not self.documents:
                problems["documents"] = f"expected one or more of {', '.join(KINDS)}, got none"
            if problems:
                raise ConfigError(problems)

    def __init__(self, config: Digits.Config) -> None:
        self.config = config
        digits.load(config.split)

    @classmethod
    def tiny_config(cls, folder: Path) -> Digits.Config:
        return cls.Config(documents=dict.fromkeys(KINDS, 1.0))

    def __len__(self) -> int:
        return DOCUMENTS

    def __getitem__(self, index: int) -> Document:
        self.check_index(index)
        rng = random.Random(f"{self.config.seed} {index}")
        kinds, weights = zip(*self.config.documents.items(), strict=True)
        kind = rng.choices(kinds, weights)[0]
        segments = KINDS[kind](Scribe(self.config.split, rng))
        return Document(segments, name=f"digits {self.config.split} {index}: {kind}")
