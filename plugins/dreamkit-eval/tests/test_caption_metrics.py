"""CIDEr and BLEU equal those of pycocoevalcap, as record_captions.py recorded them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from dreamkit import DreamkitError
from dreamkit_eval.metrics import bleu, cider, cider_each

REFERENCE = Path(__file__).parent / "reference"
CORPORA = json.loads((REFERENCE / "hard_captions.json").read_text("utf-8"))
CORPORA["ordinary"] = json.loads(gzip.decompress((REFERENCE / "ordinary_captions.json.gz").read_bytes()))
CAPTION = st.lists(
    st.sampled_from(["a", "dog", "cat", "red", "runs", "on", "grass"]), min_size=1, max_size=8
).map(" ".join)
CORPUS = st.lists(st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=3)), min_size=2, max_size=5)


def split(corpus: list) -> tuple[dict, dict]:
    return {key: pair[0] for key, pair in enumerate(corpus)}, {
        key: pair[1] for key, pair in enumerate(corpus)
    }


@pytest.mark.parametrize("name", CORPORA)
def test_figures_equal_the_recorded_ones(name: str) -> None:
    corpus = CORPORA[name]
    predictions, references = corpus["predictions"], corpus["references"]
    assert cider(predictions, references) == pytest.approx(corpus["cider"], abs=1e-6)
    each = cider_each(predictions, references)
    assert list(each) == list(references)
    assert list(each.values()) == pytest.approx(corpus["cider_each"], abs=1e-6)
    assert bleu(predictions, references) == pytest.approx(corpus["bleu"], abs=1e-6)


def test_the_only_id_has_no_cider() -> None:
    assert cider({1: "a dog runs"}, {1: ["a dog runs"]}) == 0


@given(CORPUS)
def test_figures_are_bounded(corpus: list) -> None:
    assert all(0 <= figure <= 1 for figure in bleu(*split(corpus)))
    assert all(0 <= figure <= 10 + 1e-9 for figure in cider_each(*split(corpus)).values())


@given(CORPUS, st.randoms(use_true_random=False))
def test_order_has_no_effect(corpus: list, random) -> None:
    predictions, references = split(corpus)
    keys = list(references)
    random.shuffle(keys)
    shuffled = {key: random.sample(references[key], len(references[key])) for key in keys}
    assert cider(predictions, shuffled) == pytest.approx(cider(predictions, references), abs=1e-9)
    assert bleu(predictions, shuffled) == pytest.approx(bleu(predictions, references), abs=1e-9)


def test_equal_captions_have_the_highest_figures() -> None:
    texts = {1: "a brown dog runs fast", 2: "two people sit on benches", 3: "the old bus waits here"}
    references = {key: [text] for key, text in texts.items()}
    assert list(cider_each(texts, references).values()) == pytest.approx([10, 10, 10])
    assert bleu(texts, references) == pytest.approx([1, 1, 1, 1])


@given(CORPUS)
def test_a_caption_that_shares_no_word_has_no_cider(corpus: list) -> None:
    predictions, references = split(corpus)
    assert cider_each({**predictions, 0: "zebra zebra"}, references)[0] == 0


@pytest.mark.parametrize("metric", [cider, cider_each, bleu])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({}, {}, "expected at least one id in predictions and references, got none"),
        (
            {1: "a"},
            {1: ["a"], 2: ["b"], "x": ["c"]},
            "got none for 2 ids: 2, x; add them, or remove these ids",
        ),
        (
            {1: "a", 2: "b"},
            {1: ["a"]},
            r"expected references for every id of predictions, got none for 1 id: 2",
        ),
        ({1: "a"}, {1: []}, "expected at least one reference for each id, got none for 1 id: 1"),
        ({1: "a"}, {1: "a"}, r"references of id 1: expected a list of texts, got 'a' \(string\)"),
        ({1: ["a"]}, {1: ["a"]}, "prediction of id 1: expected a text, got a list of length 1"),
        ({1: "a"}, {1: ["a", None]}, "references of id 1: expected a list of texts"),
        (["a"], {1: ["a"]}, "predictions: expected a dict of id to text, got a list"),
        ({n: "a" for n in range(8)}, {0: ["a"]}, r"7 ids: 1, 2, 3, 4, 5 and 2 more"),
    ],
)
def test_bad_input_is_refused(metric, predictions, references, message: str) -> None:
    with pytest.raises(DreamkitError, match=message):
        metric(predictions, references)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(DreamkitError) as raised:
        cider({1: "a", 3: None}, {1: [], 2: ["b"]})
    assert len(str(raised.value).splitlines()) == 4
