"""Measures a model on held-out handwriting, through nothing but `model.generate`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamkit import Document, Image, Text, collect
from dreamkit_digits import digits, phrases
from dreamkit_digits.documents import GIVEN_OF_A_SUM, Scribe, Segments, said
from dreamkit_digits.judge import Judge
from dreamkit_digits.phrases import WORDS

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from dreamkit import DreamModel

BATCH = 100
"""Documents written together."""
DRAWINGS = 25
"""Drawings of each digit."""
SUMS = 4
"""Sums of each pair of digits that was trained."""
UNSEEN_SUMS = 15
"""Sums of each pair of digits that was not."""
COUNTS = 10
"""Countings from each start."""
CHATS = 10

TARGETS: Mapping[str, float] = {
    "judge_accuracy": 0.98,
    "read_accuracy": 0.95,
    "draw_accuracy": 0.95,
    "sum_accuracy": 0.85,
    "count_accuracy": 0.80,
}
"""The least that each figure of a demo has to be."""


@dataclass(frozen=True)
class Written:
    """A document that the model went on with, what it should have shown or named, and whether it did.

    `given` of its segments were the prompt; `seen` is what the judge sees in each picture that was drawn.
    """

    document: Document
    given: int
    wanted: tuple[int, ...]
    seen: tuple[int, ...]
    right: bool

    @property
    def continuation(self) -> Segments:
        """What the model wrote."""
        return self.document.segments[self.given :]


@dataclass(frozen=True)
class Measured:
    """Everything that was written to be judged, and the judge's own accuracy on real held-out digits."""

    judge_accuracy: float
    judge_samples: int
    reads: Sequence[Written]
    draws: Sequence[Written]
    sums: Sequence[Written]
    unseen_sums: Sequence[Written]
    counts: Sequence[Written]
    chats: Sequence[Written]

    def figures(self) -> dict[str, float | int]:
        """Each share of right documents by name, and after it its number of samples."""
        figures: dict[str, float | int] = {
            "judge_accuracy": self.judge_accuracy,
            "judge_accuracy_samples": self.judge_samples,
        }
        for name, written in {
            "read_accuracy": self.reads,
            "draw_accuracy": self.draws,
            "sum_accuracy": self.sums,
            "count_accuracy": self.counts,
            "sum_accuracy_unseen_pairs": self.unseen_sums,
        }.items():
            figures[name] = sum(each.right for each in written) / len(written)
            figures[f"{name}_samples"] = len(written)
        return figures


@dataclass(frozen=True)
class Prompt:
    """What the model is given, and the digits that it should go on to show or name."""

    segments: Segments
    wanted: tuple[int, ...]


Rule = Callable[[Segments, Sequence[int], Sequence[int]], bool]
"""Whether a continuation is right, from its segments, the digits the judge sees in it, and those wanted."""
Advance = Callable[[int], None]
"""Told of every few documents that are done."""


def measure(model: DreamModel, seed: int = 0, advance: Advance = lambda documents: None) -> Measured:
    """Has `model` write `total()` documents, and judges them."""
    judge, heldout = Judge.train(), digits.load("heldout")
    written = {
        name: write(model, prompts, rule, judge, seed, advance)
        for name, (prompts, rule) in exercises(seed).items()
    }
    return Measured(judge.accuracy(heldout.pixels, heldout.labels), len(heldout), **written)


def total() -> int:
    """The number of documents that `measure` has a model write."""
    return sum(len(prompts) for prompts, _ in exercises(0).values())


def exercises(seed: int) -> Mapping[str, tuple[Sequence[Prompt], Rule]]:
    """For each field of `Measured`: prompts, and the rule by which what follows is right."""
    scribe = Scribe("heldout", random.Random(seed))
    return {
        "reads": (list(_readings()), names),
        "draws": ([_drawing(digit) for digit in range(10) for _ in range(DRAWINGS)], draws),
        "sums": ([_sum(scribe, a, b) for a, b in phrases.TRAIN_PAIRS for _ in range(SUMS)], draws),
        "unseen_sums": (
            [_sum(scribe, a, b) for a, b in sorted(phrases.HELD_OUT_PAIRS) for _ in range(UNSEEN_SUMS)],
            draws,
        ),
        "counts": ([_counting(start) for start in phrases.COUNTING_STARTS for _ in range(COUNTS)], counts),
        "chats": ([_chat(scribe, number) for number in range(CHATS)], answers),
    }


def write(
    model: DreamModel,
    prompts: Sequence[Prompt],
    rule: Rule,
    judge: Judge,
    seed: int = 0,
    advance: Advance = lambda documents: None,
) -> list[Written]:
    """Has `model` go on from each of `prompts`, many at a time, and judges what it wrote."""
    written = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        seeds = [seed * 1_000_000 + number for number in range(start, start + len(batch))]
        documents = collect(model.generate([Document(prompt.segments) for prompt in batch], seed=seeds))
        pairs = zip(documents, batch, strict=True)
        written += [judged(document, prompt, rule, judge) for document, prompt in pairs]
        advance(len(batch))
    return written


def judged(document: Document, prompt: Prompt, rule: Rule, judge: Judge) -> Written:
    """What the judge says of a document that goes on from `prompt`."""
    given = len(prompt.segments)
    continuation = document.segments[given:]
    seen = tuple(judge.judge(drawn(continuation)).tolist())
    return Written(document, given, prompt.wanted, seen, rule(continuation, seen, prompt.wanted))


def drawn(segments: Segments) -> list[PILImage]:
    """The pictures in `segments` that the model drew."""
    return [segment.picture for segment in segments if isinstance(segment, Image) and segment.draw]


def names(continuation: Segments, seen: Sequence[int], wanted: Sequence[int]) -> bool:
    """The text names the digit wanted, and nothing is drawn."""
    return not seen and phrases.digit_in(Document(continuation).text) == wanted[0]


def draws(continuation: Segments, seen: Sequence[int], wanted: Sequence[int]) -> bool:
    """One picture is drawn, and the judge sees the digit wanted in it."""
    return tuple(seen) == tuple(wanted)


def counts(continuation: Segments, seen: Sequence[int], wanted: Sequence[int]) -> bool:
    """Picture, word, picture, word, picture: each of them right, and nothing more."""
    shape = [segment.text.strip() if isinstance(segment, Text) else None for segment in continuation]
    first, *rest = wanted
    expected: list[str | None] = [None]
    for digit in rest:
        expected += [WORDS[digit], None]
    return shape == expected and tuple(seen) == (first, *rest)


def answers(continuation: Segments, seen: Sequence[int], wanted: Sequence[int]) -> bool:
    """The text names the digit wanted, and any picture shows it."""
    return phrases.digit_in(Document(continuation).text) == wanted[0] and set(seen) <= set(wanted)


def _readings() -> Iterator[Prompt]:
    """Every held-out picture once."""
    return (Prompt((Image(picture),), (label,)) for picture, label in digits.load("heldout"))


def _drawing(digit: int) -> Prompt:
    return Prompt((Text(phrases.naming(digit)),), (digit,))


def _sum(scribe: Scribe, a: int, b: int) -> Prompt:
    question = scribe.write(phrases.summing(a, b))[:GIVEN_OF_A_SUM]
    return Prompt((*question, Text("is")), (a + b,))


def _counting(start: int) -> Prompt:
    return Prompt((Text(WORDS[start]),), (start, start + 1, start + 2))


def _chat(scribe: Scribe, number: int) -> Prompt:
    """In turn a question about a picture and a request for a drawing, in every wording."""
    digit = scribe.rng.randrange(10)
    make = phrases.requesting if number % 2 else phrases.asking
    turn = make(digit, number // 2 % len(phrases.QUESTIONS))
    return Prompt(said("user", scribe.write(turn.user)), (digit,))
