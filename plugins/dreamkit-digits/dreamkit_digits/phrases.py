"""The words that the tiny DreamLLM reads and writes, as pure text.

A line is a tuple of pieces: text, and a `Picture` for each picture of a digit. The maker of a document chooses the
handwriting of each picture.
"""

from __future__ import annotations

from dataclasses import dataclass

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The name of each digit."""

HELD_OUT_PAIRS = frozenset({(0, 7), (1, 4), (2, 6), (3, 2), (4, 3), (5, 4), (6, 1), (8, 0)})
"""Ordered pairs (a, b) whose sum is in no training text or document, here or in the parts' pretraining.

Each mirror (b, a) is trained on, and so is every digit on either side and every sum.
"""

PAIRS = tuple((a, b) for a in range(10) for b in range(10 - a))
"""All 55 ordered pairs whose sum is one digit."""
TRAIN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)
"""The 47 ordered pairs to train with."""
COUNTING_STARTS = range(8)
"""First digits of three consecutive digits."""

QUESTIONS = (
    "what is this?",
    "which digit is this?",
    "what digit do you see?",
    "what does the picture show?",
    "read the digit.",
)
"""Ways to ask for the digit in a picture."""
REQUESTS = (
    "draw {}",
    "please draw {}",
    "show me {}",
    "make a picture of {}",
    "can you draw {}?",
)
"""Ways to ask for a drawing; the braces take a digit's name with its article."""


@dataclass(frozen=True)
class Picture:
    """A place for a picture of `digit`. `drawn`: the model draws the picture; otherwise it only reads one."""

    digit: int
    drawn: bool


Line = tuple[str | Picture, ...]
"""Text and pictures, in order."""


@dataclass(frozen=True)
class Turn:
    """One exchange of a chat: the user's line and the assistant's answer."""

    user: Line
    assistant: Line


def naming(digit: int) -> str:
    """Return the digit's name with its article: "a seven", "an eight"."""
    word = WORDS[digit]
    return f"{'an' if word[0] in 'aeiou' and word != 'one' else 'a'} {word}"


def digit_in(text: str) -> int | None:
    """Return the last digit that the text names, or None if it names none."""
    named = [word.strip("?.,!") for word in text.lower().split()]
    return next((WORDS.index(word) for word in reversed(named) if word in WORDS), None)


def reading(digit: int) -> Line:
    """Return a picture and what it is: [7] is a seven."""
    return Picture(digit, drawn=False), f"is {naming(digit)}"


def drawing(digit: int) -> Line:
    """Return a name and its drawing: a seven [7]."""
    return naming(digit), Picture(digit, drawn=True)


def counting(start: int) -> Line:
    """Return three numbers in a row, each drawn: two [2] three [3] four [4].

    Raises ValueError unless start, start + 1 and start + 2 are digits.
    """
    if start not in COUNTING_STARTS:
        raise ValueError(f"cannot count to {start + 2}: start is {start}, choose 0 to {COUNTING_STARTS[-1]}")
    return tuple(
        piece for digit in range(start, start + 3) for piece in (WORDS[digit], Picture(digit, drawn=True))
    )


def summing(a: int, b: int) -> Line:
    """Return a sum of two pictures with its drawn result: [2] plus [5] is seven [7].

    Raises ValueError unless a, b and a + b are digits.
    """
    if (a, b) not in PAIRS:
        raise ValueError(f"{a} plus {b} is {a + b}: a, b and their sum must each be a digit from 0 to 9")
    return (
        Picture(a, drawn=False),
        "plus",
        Picture(b, drawn=False),
        f"is {WORDS[a + b]}",
        Picture(a + b, drawn=True),
    )


def question(digit: int, wording: int = 0) -> Turn:
    """Return a question about a picture, in one of the wordings of `QUESTIONS`, and its answer."""
    return Turn((Picture(digit, drawn=False), QUESTIONS[wording]), (naming(digit),))


def request(digit: int, wording: int = 0) -> Turn:
    """Return a request for a drawing, in one of the wordings of `REQUESTS`, and its answer."""
    return Turn((REQUESTS[wording].format(naming(digit)),), drawing(digit))
