"""Beam search for the most likely text. R rows, one for each running hypothesis; V is the vocabulary.

The rules are those of `generate` in transformers with `early_stopping=False`: which hypotheses run and end, their
scores, and when no better one is to be expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf, isfinite

from torch import Tensor

from dreamkit.model.events import EndReason

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Hypothesis:
    """A text that may be the most likely one.

    Attributes:
        tokens: ids of its tokens.
        score: the sum of their log probabilities. Of a finished one, it is divided by the length to the power of
            the length penalty.
        parent: row, in the step before, of its tokens without the last one, while it runs.
        reason: why it has ended; None while it runs.
    """

    tokens: Tokens = ()
    score: float = 0.0
    parent: int = 0
    reason: EndReason | None = None


@dataclass
class BeamSearch:
    """The search of one text.

    Attributes:
        beams: most hypotheses that run, and most that are kept of the finished ones.
        length_penalty: a higher one prefers longer texts. At 0, the sums of the log probabilities are compared, at 1
            their means.
        candidates: continuations that are looked at in each step. With n end tokens, (1 + n) for each beam are enough
            for all beams to go on.
        running: hypotheses to continue, the most likely first.
        finished: hypotheses that have ended, the best first.
        agreed: the first tokens that all hypotheses have, and so the result; all of its tokens, once it is known.
    """

    beams: int
    length_penalty: float
    candidates: int
    running: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    finished: list[Hypothesis] = field(default_factory=list)
    agreed: Tokens = ()

    def advance(self, log_probs_RV: Tensor, end: Callable[[Tokens], EndReason | None]) -> bool:
        """Continue each running hypothesis by a token; return False, without a change, if a probability is NaN.

        `log_probs_RV` are those of the next token of each; -inf excludes a token. `end` returns the reason if a text of
        these tokens ends with the last one, else None.
        """
        scores_R = log_probs_RV.new_tensor([hypothesis.score for hypothesis in self.running])
        sums = (log_probs_RV + scores_R[:, None]).flatten()
        best = sums.topk(min(self.candidates, len(sums)))  # NaN counts as the greatest
        scores, places = best.values.tolist(), best.indices.tolist()
        if not isfinite(scores[0]):
            return False
        running: list[Hypothesis] = []
        for rank, (score, place) in enumerate(zip(scores, places, strict=True)):
            if score == -inf or len(running) == self.beams:
                break
            parent, token = divmod(place, log_probs_RV.shape[1])
            tokens = (*self.running[parent].tokens, token)
            if (reason := end(tokens)) is None:
                running.append(Hypothesis(tokens, score, parent))
            elif rank < self.beams:
                self.finished.append(Hypothesis(tokens, self._scaled(score, len(tokens)), reason=reason))
        self.finished = sorted(self.finished, key=lambda each: -each.score)[: self.beams]
        self.running = running
        self.agreed = self.finished[0].tokens if self.is_done else self._common_beginning()
        return True

    @property
    def is_done(self) -> bool:
        """True if the best finished hypothesis is the result.

        None runs any more, or the most likely one of these would be worse, if it ended now, than all finished ones.
        """
        if not self.running or len(self.finished) < self.beams:
            return not self.running
        best = self.running[0]
        return self._scaled(best.score, len(best.tokens)) <= self.finished[-1].score

    def _common_beginning(self) -> Tokens:
        known = len(self.agreed)
        columns = zip(*(each.tokens[known:] for each in (*self.running, *self.finished)), strict=False)
        return self.agreed + tuple(
            column[0] for column in takewhile(lambda column: len({*column}) == 1, columns)
        )

    def _scaled(self, score: float, length: int) -> float:
        return score / length**self.length_penalty
