"""Measurement of a model on held-out handwriting, through `model.generate` alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamkit import Document, Image, Text, collect
from dreamkit_digits import digits, phrases
from dreamkit_digits.documents import QUESTION_PIECES, Scribe, Segments, as_role
from dreamkit_digits.judge import Judge
from dreamkit_digits.phrases import WORDS

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from dreamkit import DreamModel

BATCH = 100
"""Documents generated together."""
DRAWINGS = 25
"""Drawings of each digit."""
SUMS = 4
"""Sums of each trained pair of digits."""
UNSEEN_SUMS = 15
"""Sums of each pair that was never trained."""
COUNTS = 10
"""Counts from each first digit."""
CHATS = 10

TARGETS: Mapping[str, float] = {
    "judge_accuracy": 0.98,
    "read_accuracy": 0.95,
    "draw_accuracy": 0.95,
    "sum_accuracy": 0.85,
    "count_accuracy": 0.80,
}
"""The lowest accepted value of each figure of a demo."""


@dataclass(frozen=True)
class Written:
    """A document that the model continued, and its judgement.

    The first `prompt_segments` segments are the prompt. `expected` are the digits to show or name; `seen` are the
    digits that the judge sees in the drawn images; `right` is True if the continuation follows its rule.
    """

    document: Document
    prompt_segments: int
    expected: tuple[int, ...]
    seen: tuple[int, ...]
    right: bool

    @property
    def continuation(self) -> Segments:
        """The segments that the model wrote."""
        return self.document.segments[self.prompt_segments :]


@dataclass(frozen=True)
class Measured:
    """All judged documents, and the judge's own accuracy on real held-out digits."""

    judge_accuracy: float
    judge_samples: int
    reads: Sequence[Written]
    draws: Sequence[Written]
    sums: Sequence[Written]
    unseen_sums: Sequence[Written]
    counts: Sequence[Written]
    chats: Sequence[Written]

    def figures(self) -> dict[str, float | int]:
        """Return the share of right documents for each exercise, and its number of samples."""
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
    """A prompt, and the digits that the continuation should show or name."""

    segments: Segments
    expected: tuple[int, ...]


Rule = Callable[[Segments, Sequence[int], Sequence[int]], bool]
"""A rule: takes the segments of a continuation, the digits seen in it and the expected ones; returns True if right."""
Advance = Callable[[int], None]
"""A callback that receives the number of documents just finished."""


def measure(model: DreamModel, seed: int = 0, advance: Advance = lambda documents: None) -> Measured:
    """Generate `total()` documents with `model`, and judge them."""
    judge, heldout = Judge.train(), digits.load("heldout")
    written = {
        name: write(model, prompts, rule, judge, seed, advance)
        for name, (prompts, rule) in exercises(seed).items()
    }
    return Measured(judge.accuracy(heldout.pixels, heldout.labels), len(heldout), **written)


def total() -> int:
    """Return the number of documents that `measure` generates."""
    return sum(len(prompts) for prompts, _ in exercises(0).values())


def exercises(seed: int) -> Mapping[str, tuple[Sequence[Prompt], Rule]]:
    """Return prompts and the rule of a right continuation, for each field of `Measured`."""
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
    """Continue each of `prompts` with `model`, many at a time, and judge the continuations."""
    written = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        seeds = [seed * 1_000_000 + number for number in range(start, start + len(batch))]
        documents = collect(model.generate([Document(prompt.segments) for prompt in batch], seed=seeds))
        pairs = zip(documents, batch, strict=True)
        written += [judge_document(document, prompt, rule, judge) for document, prompt in pairs]
        advance(len(batch))
    return written


def judge_document(document: Document, prompt: Prompt, rule: Rule, judge: Judge) -> Written:
    """Judge a document that continues `prompt`."""
    start = len(prompt.segments)
    continuation = document.segments[start:]
    seen = tuple(judge.judge(drawn_pictures(continuation)).tolist())
    return Written(document, start, prompt.expected, seen, rule(continuation, seen, prompt.expected))


def drawn_pictures(segments: Segments) -> list[PILImage]:
    """Return the pictures in `segments` that the model drew."""
    return [segment.picture for segment in segments if isinstance(segment, Image) and segment.draw]


def names(continuation: Segments, seen: Sequence[int], expected_digits: Sequence[int]) -> bool:
    """Return True if the text names the expected digit and nothing is drawn."""
    return not seen and phrases.digit_in(Document(continuation).text) == expected_digits[0]


def draws(continuation: Segments, seen: Sequence[int], expected_digits: Sequence[int]) -> bool:
    """Return True if one image is drawn and the judge sees the expected digit in it."""
    return tuple(seen) == tuple(expected_digits)


def counts(continuation: Segments, seen: Sequence[int], expected_digits: Sequence[int]) -> bool:
    """Return True if image, word, image, word, image are all right, and nothing follows."""
    shape = [segment.text.strip() if isinstance(segment, Text) else None for segment in continuation]
    first, *rest = expected_digits
    expected: list[str | None] = [None]
    for digit in rest:
        expected += [WORDS[digit], None]
    return shape == expected and tuple(seen) == (first, *rest)


def answers(continuation: Segments, seen: Sequence[int], expected_digits: Sequence[int]) -> bool:
    """Return True if the text names the expected digit and every drawn image shows it."""
    return phrases.digit_in(Document(continuation).text) == expected_digits[0] and set(seen) <= set(
        expected_digits
    )


def _readings() -> Iterator[Prompt]:
    """Return a prompt of every held-out picture."""
    return (Prompt((Image(picture),), (label,)) for picture, label in digits.load("heldout"))


def _drawing(digit: int) -> Prompt:
    return Prompt((Text(phrases.naming(digit)),), (digit,))


def _sum(scribe: Scribe, a: int, b: int) -> Prompt:
    question = scribe.write(phrases.summing(a, b))[:QUESTION_PIECES]
    return Prompt((*question, Text("is")), (a + b,))


def _counting(start: int) -> Prompt:
    return Prompt((Text(WORDS[start]),), (start, start + 1, start + 2))


def _chat(scribe: Scribe, number: int) -> Prompt:
    """Return, in turn, a question about an image and a request to draw one, in every wording."""
    digit = scribe.rng.randrange(10)
    make = phrases.request if number % 2 else phrases.question
    turn = make(digit, number // 2 % len(phrases.QUESTIONS))
    return Prompt(as_role("user", scribe.write(turn.user)), (digit,))
