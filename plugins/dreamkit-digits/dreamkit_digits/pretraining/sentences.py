"""The text that the tiny LLaMA is pretrained on: digit words, counting, written addition and chat.

Every kind of line in `phrases` comes without its pictures, and with a stuttered word in the place of a
picture: a picture is many tokens of one digit, so "two two two two" stands where [2] will, over the same
distances.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from dreamkit_digits import phrases
from dreamkit_digits.phrases import TRAIN_PAIRS, WORDS, Line, Picture

LONGEST_STUTTER = 24
"""Tokens that one drawn picture takes in a document: queries, vision tokens and the tokens around them."""
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Vicuna's system prompt: known to the tokenizer, so that it takes few tokens."""
FILLERS = (
    "this is a picture of {a}.",
    "here is {a}.",
    "I see {a} in the image.",
    "the digit in this picture is {w}.",
    "this image does not show {a}, it shows {b}.",
    "{w} is a digit, and so is {v}.",
    "write {a} and then draw {b}.",
    "{a} is not {b}.",
    "hello! this is the digit {w}.",
    "yes, this is {a}.",
    "no, this is not {a}, this is {b}.",
    "thank you for {a}.",
    "the words are {w}, {v} and {w}.",
    "say {w} twice: {w} {w}",
)


def sentence(rng: random.Random) -> str:
    """Return one random sentence."""
    kinds, weights = zip(*KINDS, strict=True)
    return rng.choices(kinds, weights)[0](rng)


def every_word() -> Iterator[str]:
    """Yield text that holds every word which the tokenizer should know as one token."""
    rng = random.Random(0)
    yield from (sentence(rng) for _ in range(5000))
    # In no sentence, but every chat may begin with it.
    yield from [SYSTEM] * 20


def spoken(line: Line, stutter: int) -> str:
    """Return a line with every picture replaced by its digit's word, `stutter` times; 0 leaves it out."""
    words = [" ".join([WORDS[p.digit]] * stutter) if isinstance(p, Picture) else p for p in line]
    return " ".join(word for word in words if word)


def stuttered(rng: random.Random) -> int:
    """Return how often a picture's word is said: never, a few times, or as often as a picture is long."""
    return rng.choice((0, 1, rng.randint(1, 4), rng.randint(1, LONGEST_STUTTER)))


def _reading(rng: random.Random) -> str:
    return spoken(phrases.reading(rng.randrange(10)), stuttered(rng))


def _drawing(rng: random.Random) -> str:
    return spoken(phrases.drawing(rng.randrange(10)), stuttered(rng))


def _counting(rng: random.Random) -> str:
    return spoken(phrases.counting(rng.choice(phrases.COUNTING_STARTS)), stuttered(rng))


def _summing(rng: random.Random) -> str:
    return spoken(phrases.summing(*rng.choice(TRAIN_PAIRS)), stuttered(rng))


def _asking(rng: random.Random) -> str:
    turn = phrases.question(rng.randrange(10), rng.randrange(len(phrases.QUESTIONS)))
    return _chat(turn, max(1, stuttered(rng)))


def _requesting(rng: random.Random) -> str:
    turn = phrases.request(rng.randrange(10), rng.randrange(len(phrases.REQUESTS)))
    return _chat(turn, stuttered(rng))


def _chat(turn: phrases.Turn, stutter: int) -> str:
    return f"USER: {spoken(turn.user, stutter)} ASSISTANT: {spoken(turn.assistant, stutter)}"


def _adding(rng: random.Random) -> str:
    a, b = rng.choice(TRAIN_PAIRS)
    one, two, both = WORDS[a], WORDS[b], WORDS[a + b]
    wordings = (
        f"{one} plus {two} is {both}",
        f"{one} plus {two} is {both}",
        f"what is {one} plus {two}? {both}",
        f"the sum of {one} and {two} is {both}.",
        f"USER: what is {one} plus {two}? ASSISTANT: {both}",
        f"{one}, and {two} more: {' '.join(WORDS[a : a + b + 1])}",
    )
    return rng.choice(wordings)


def _ordering(rng: random.Random) -> str:
    start, end = sorted(rng.sample(range(10), 2))
    low, high = WORDS[start], WORDS[end]
    wordings = (
        f"after {WORDS[end - 1]} comes {high}.",
        f"before {WORDS[start + 1]} comes {low}.",
        f"{low} is less than {high}.",
        f"{high} is more than {low}.",
        f"count from {low} to {high}: {' '.join(WORDS[start : end + 1])}",
        f"count down from {high} to {low}: {' '.join(WORDS[start : end + 1][::-1])}",
        " ".join(WORDS[start : end + 1]),
    )
    return rng.choice(wordings)


def _filling(rng: random.Random) -> str:
    one, two = rng.sample(range(10), 2)
    blanks = {"a": phrases.naming(one), "b": phrases.naming(two), "w": WORDS[one], "v": WORDS[two]}
    return rng.choice(FILLERS).format(**blanks)


KINDS: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (_reading, 2),
    (_drawing, 2),
    (_counting, 2),
    (_summing, 4),
    (_asking, 2),
    (_requesting, 2),
    (_adding, 5),
    (_ordering, 3),
    (_filling, 2),
)
"""The kinds of sentence, and how often each comes."""
