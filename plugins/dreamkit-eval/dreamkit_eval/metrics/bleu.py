"""BLEU of captions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

from .captions import MOST_WORDS, scored_captions

_TINY = 1e-15  # added to counts of matches, and to the length
_SMALL = 1e-9  # added to what they are divided by


def bleu(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]
) -> tuple[float, float, float, float]:
    """Return BLEU-1, BLEU-2, BLEU-3 and BLEU-4 of a corpus, each in [0, 1].

    `predictions` has a caption for each id, and `references` one or more. The brevity penalty compares the length of
    all captions with that of each caption's closest reference, the shorter one of two as close.

    Source: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", 2002, with
    `bleu/bleu_scorer.py` of pycocoevalcap 1.2 for the choice of the reference's length (`closest`) and for the
    constants that avoid a division by zero.

    Raises:
        DreamkitError: ids differ, an id without references, or values that are not texts.
    """
    length = reference_length = 0
    matches, guesses = [0] * MOST_WORDS, [0] * MOST_WORDS
    for scored in scored_captions(predictions, references):
        prediction = scored.prediction
        length += prediction.length
        lengths = [reference.length for reference in scored.references]
        reference_length += min(lengths, key=lambda other: (abs(other - prediction.length), other))
        for gram, number in prediction.counts.items():
            most = max(reference.counts[gram] for reference in scored.references)
            matches[len(gram) - 1] += min(number, most)
            guesses[len(gram) - 1] += number
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, figures = 1.0, []
    for n in range(MOST_WORDS):
        product *= (matches[n] + _TINY) / (guesses[n] + _SMALL)
        figures.append(penalty * product ** (1 / (n + 1)))
    return figures[0], figures[1], figures[2], figures[3]
