"""One document whose text is searched with several beams.

R rows, one for each running hypothesis; V is the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dreamkit.model.beam_search import BeamSearch, Hypothesis, Tokens
from dreamkit.model.events import EndReason, Event
from dreamkit.model.finite import logits_error
from dreamkit.model.token_choice import penalize
from dreamkit.model.writer import Writer


class BeamWriter(Writer):
    """An unfinished document of several hypotheses, without images.

    Its events have text as soon as all hypotheses agree on it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = 0 if self.options.ignore_eos else len(self.language.eos_ids)
        beams = self.options.beams
        self.search = BeamSearch(beams, self.options.length_penalty, max(2, 1 + ends) * beams)
        self.taken = 0  # tokens that are in `text`

    @property
    def running(self) -> Sequence[Hypothesis]:
        return self.search.running

    def write(self, logits: Tensor) -> Iterator[Event]:
        """Write one token of each hypothesis. `logits` is (R, V)."""
        self.tokens += 1
        if not self.search.advance(self._log_probs(logits), self._end):
            raise logits_error(self.prompt.name, self.tokens)
        tokens = self.search.agreed
        if self.search.is_done:
            self.reason = self.search.finished[0].reason
            tokens = tokens[:-1] if self.reason == "end" else tokens
        for token in tokens[self.taken :]:
            yield from self._yield_text(token)
        self.taken = len(tokens)

    def feed(self, inputs: Tensor, names: Sequence[int]) -> None:
        self.inputs = inputs[:, None]
        # of the first row, from which other documents may start
        self.names[self.length :] = self.running[0].tokens

    def _log_probs(self, logits_RV: Tensor) -> Tensor:
        """Return the log probabilities (R, V) of the next tokens, after the settings for the choice of tokens.

        As in transformers, the settings change log probabilities, where those of other documents change logits.
        """
        log_probs_RV, penalty = logits_RV.log_softmax(-1), self.options.repetition_penalty
        if penalty != 1:
            rows = zip(log_probs_RV, self.search.running, strict=True)
            log_probs_RV = torch.stack(
                [penalize(row_V, self.chooser.seen.union(each.tokens), penalty) for row_V, each in rows]
            )
        return log_probs_RV.index_fill(1, self.chooser.suppressed, -torch.inf)

    def _end(self, tokens: Tokens) -> EndReason | None:
        """Return why a text of these tokens ends with the last one, or None."""
        if tokens[-1] in self.language.eos_ids and not self.options.ignore_eos:
            return "end"
        if self.options.stop and self.text.is_stopped_by(tokens[self.taken :]):
            return "stop"
        if self.length + len(tokens) > self.language.max_length:  # the last token is not read
            return "length"
        return "tokens" if len(tokens) == self.options.max_tokens else None
