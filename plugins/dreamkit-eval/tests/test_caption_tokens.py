"""Tokens of captions equal those of Stanford's tokenizer, as record_captions.py recorded them."""

from __future__ import annotations

import gzip
import json
import string
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from dreamkit_eval.metrics import caption_tokens

REFERENCE = Path(__file__).parent / "reference"
HARD = json.loads((REFERENCE / "hard_captions.json").read_text("utf-8"))
ORDINARY = json.loads(gzip.decompress((REFERENCE / "ordinary_captions.json.gz").read_bytes()))
WORDS = st.text(string.ascii_letters, min_size=1, max_size=8).filter(
    lambda word: word.lower() not in ("cannot", "gonna", "gotta", "wanna", "lemme", "gimme")
)
PLAIN = st.lists(WORDS, max_size=8).map(" ".join)


def joined(captions: list[str]) -> list[str]:
    return [" ".join(tokens) for tokens in caption_tokens(captions)]


@pytest.mark.parametrize("corpus", [*HARD.values(), ORDINARY], ids=[*HARD, "ordinary"])
def test_tokens_equal_the_recorded_ones(corpus: dict) -> None:
    predictions = list(corpus["predictions"].values())
    differing = [
        (caption, found, expected)
        for caption, found, expected in zip(
            predictions, joined(predictions), corpus["prediction_tokens"], strict=True
        )
        if found != expected
    ]
    assert differing == []
    texts = [text for texts in corpus["references"].values() for text in texts]
    assert joined(texts) == [tokens for each in corpus["reference_tokens"] for tokens in each]


def test_the_recorded_captions_are_many_and_hard() -> None:
    assert len(ORDINARY["predictions"]) == 500 and all(len(t) == 5 for t in ORDINARY["references"].values())
    hard = {token for tokens in HARD["hard"]["prediction_tokens"] for token in tokens.split(" ")}
    assert hard >= {
        "-lrb-",
        "-lsb-",
        "-lcb-",
        "u.s.",
        "a.",
        "2\xa01/2",
        "am",
        "d'ye",
        "w",
        "w/o",
        "me@example.com",
    }


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("", []),
        (" \n\r\x85 ", []),
        ("a\ndog\r\nruns", ["a", "dog", "runs"]),
        ("no\u2028line", ["no", "line"]),
        ("soft\xadhyphen", ["softhyphen"]),
        ("dog&apos;s &quot;bone&quot;", ["dog", "'s", "bone"]),
        ("plan b.", ["plan", "b."]),
    ],
)
def test_a_caption_is_split(caption: str, tokens: list[str]) -> None:
    assert caption_tokens([caption]) == [tokens]


def test_a_token_ends_with_its_caption() -> None:
    captions = [
        "1",
        "1/2",
        "a <b",
        "c>",
        "(555)",
        "123-4567",
        "can",
        "not",
        "https://a.b",
        "c",
        "'",
        "s",
        ". .",
        ".",
    ]
    assert caption_tokens(captions) == [
        tokens for text in captions for tokens in caption_tokens([text, "x"])[:1]
    ]


def test_the_next_caption_decides_about_a_letter_with_a_period() -> None:
    """Java prints the same tokens for these lines of a file."""
    assert caption_tokens(["plan b.", "A man"]) == [["plan", "b"], ["a", "man"]]
    assert caption_tokens(["plan b.", "Dogs"]) == [["plan", "b."], ["dogs"]]


@given(st.lists(PLAIN, max_size=5))
def test_plain_words_are_lower_cased(captions: list[str]) -> None:
    assert caption_tokens(captions) == [caption.lower().split() for caption in captions]


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_text_has_a_list_of_tokens(captions: list[str]) -> None:
    tokens = caption_tokens(captions)
    assert len(tokens) == len(captions)
    assert all(token and " " not in token and "\n" not in token for each in tokens for token in each)
