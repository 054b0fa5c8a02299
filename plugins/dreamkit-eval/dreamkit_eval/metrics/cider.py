"""CIDEr of captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .captions import MOST_WORDS, Gram, Grams, scored_captions

_SIGMA: Final = 6.0  # in words, of the penalty for a difference in length
_SCALE: Final = 10.0


def cider(predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> float:
    """Return CIDEr-D of a corpus, the mean of `cider_each`, in [0, 10]; 1.154 is what a leaderboard prints as 115.4.

    Raises:
        DreamkitError: ids differ, an id without references, or values that are not texts.
    """
    scores = cider_each(predictions, references)
    return math.fsum(scores.values()) / len(scores)


def cider_each(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]
) -> dict[Hashable, float]:
    """Return CIDEr-D of each caption by id, in [0, 10].

    `predictions` has a caption for each id, and `references` one or more. Document frequencies come from `references`
    alone, in which an id is a document. So a figure depends on the whole corpus, and a corpus of one id has 0.

    Source: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", arXiv 1411.5726, equations 1 to 3
    and CIDEr-D of section 6, with `cider/cider_scorer.py` of pycocoevalcap 1.2: n-grams of 1 to 4 words with equal
    weights, clipping, a Gaussian of sigma 6 over the difference in bigrams, and a factor of 10.

    Raises:
        DreamkitError: ids differ, an id without references, or values that are not texts.
    """
    corpus = scored_captions(predictions, references)
    documents: Counter[Gram] = Counter()
    for scored in corpus:
        documents.update({gram for reference in scored.references for gram in reference.counts})
    scores = {}
    for scored in corpus:
        prediction = _weigh(scored.prediction, documents, len(corpus))
        each = [_similarity(prediction, _weigh(other, documents, len(corpus))) for other in scored.references]
        scores[scored.id] = _SCALE * sum(each) / len(each)
    return scores


@dataclass(frozen=True)
class _Weighted:
    """TF-IDF weights of a caption's n-grams, their norm for each n, and its number of bigrams."""

    weights: dict[Gram, float]
    norms: tuple[float, ...]
    bigrams: int


def _weigh(grams: Grams, documents: Counter[Gram], number: int) -> _Weighted:
    weights = {
        gram: times * (math.log(number) - math.log(max(1, documents[gram])))
        for gram, times in grams.counts.items()
    }
    squares = [0.0] * MOST_WORDS
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    return _Weighted(weights, tuple(map(math.sqrt, squares)), max(0, grams.length - 1))


def _similarity(prediction: _Weighted, reference: _Weighted) -> float:
    """Return the mean over n of the clipped cosines, times the penalty for a difference in length."""
    products = [0.0] * MOST_WORDS
    for gram, weight in prediction.weights.items():
        other = reference.weights.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, other) * other
    cosines = (
        product / (norm * other) if norm and other else product
        for product, norm, other in zip(products, prediction.norms, reference.norms, strict=True)
    )
    penalty = math.exp(-((prediction.bigrams - reference.bigrams) ** 2) / (2 * _SIGMA**2))
    return penalty * sum(cosines) / MOST_WORDS
