"""The choice of the next token of one document, from its logits. V is the vocabulary.

The operations and their order are those of `generate` in transformers: repetition penalty, suppressed ids, temperature,
top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.model.events import TokenScore
from dreamkit.recipe.generation_section import GenerationSection


@dataclass
class TokenChooser:
    """The state of one document between its tokens.

    Attributes:
        options: settings of the document.
        generator: random numbers of sampled tokens.
        suppressed: ids that are never written, a tensor on the device of the logits.
        dream_start: id of the dream token.
        seen: ids of the written tokens and, if there is a repetition penalty, of the prompt.
    """

    options: GenerationSection
    generator: torch.Generator
    suppressed: Tensor
    dream_start: int
    seen: set[int]

    def choose(self, logits_V: Tensor) -> TokenScore | None:
        """Return the next token: the most likely one at temperature 0, else a sampled one.

        It has no probabilities unless `log_probs` or `dream_probs` is set. Return None if the greatest logit is not
        finite, or a probability is NaN; a NaN counts as the greatest.
        """
        allowed_V = logits_V
        if self.options.repetition_penalty != 1:
            allowed_V = penalize(allowed_V, self.seen, self.options.repetition_penalty)
        allowed_V = allowed_V.index_fill(0, self.suppressed, -torch.inf)
        token = _most_likely(allowed_V) if self.options.temperature == 0 else self._sample(allowed_V)
        if token is None:
            return None
        self.seen.add(token)
        return self._score(token, logits_V)

    def _sample(self, logits_V: Tensor) -> int | None:
        logits_V = logits_V.cpu().double()
        if not logits_V.max().isfinite():
            return None
        probabilities_V, ids_V = sampling_distribution(logits_V, self.options)
        return int(ids_V[torch.multinomial(probabilities_V, 1, generator=self.generator)])

    def _score(self, token: int, logits_V: Tensor) -> TokenScore | None:
        """Return `token` with the probabilities that the settings ask for, or None if these are NaN."""
        options = self.options
        if options.log_probs is None and not options.dream_probs:
            return TokenScore(token)
        log_probs_V = logits_V.log_softmax(-1)
        best = log_probs_V.topk(min(options.log_probs or 0, len(log_probs_V)))
        # one read-back of all values, and one of ids
        log_prob, dream, *others = torch.cat([log_probs_V[[token, self.dream_start]], best.values]).tolist()
        if math.isnan(log_prob):
            return None
        return TokenScore(
            token,
            None if options.log_probs is None else log_prob,
            tuple(zip(best.indices.tolist(), others, strict=True)),
            math.exp(dream) if options.dream_probs else None,
        )


def penalize(logits_V: Tensor, ids: Collection[int], penalty: float) -> Tensor:
    """Return logits in which tokens with these ids are less likely if `penalty` is above 1, else more likely.

    Each such logit is divided by the penalty (CTRL, section 4.1 of arXiv 1909.05858) or, if it is negative, multiplied,
    as in transformers.
    """
    index = torch.tensor(list(ids), dtype=torch.long, device=logits_V.device)
    seen = logits_V[index]
    return logits_V.index_copy(0, index, torch.where(seen < 0, seen * penalty, seen / penalty))


def sampling_distribution(logits_V: Tensor, options: GenerationSection) -> tuple[Tensor, Tensor]:
    """Return the probabilities (V,) from which a token is sampled, up to a factor, and the ids (V,) that have them.

    The probabilities fall. At least the first one is above 0. `logits_V` are in float64, and their greatest is finite.
    Top-k keeps the k most likely tokens, and those as likely as the last of them. Top-p (section 3.1 of arXiv
    1904.09751) keeps the smallest set of tokens whose probabilities sum to at least p. Min-p (arXiv 2407.01082) keeps
    tokens at least p times as likely as the most likely one.
    """
    # Subtract the greatest logit first: a positive logit divided by a tiny temperature would be infinite.
    scaled_V = (logits_V - logits_V.max()) / options.temperature
    if options.top_k:
        last = scaled_V.topk(min(options.top_k, len(scaled_V))).values[-1]
        scaled_V = scaled_V.masked_fill(scaled_V < last, -torch.inf)
    probabilities_V, ids_V = scaled_V.softmax(-1).sort(descending=True)
    outside_V = probabilities_V.cumsum(-1) - probabilities_V >= options.top_p
    outside_V |= probabilities_V < options.min_p * probabilities_V[0]
    outside_V[0] = False
    probabilities_V[outside_V] = 0
    return probabilities_V, ids_V


def _most_likely(logits_V: Tensor) -> int | None:
    token = logits_V.argmax()
    is_finite = logits_V.gather(0, token[None])[0].isfinite()
    number, flag = torch.stack([token, is_finite.to(token)]).tolist()  # one read-back
    return int(number) if flag else None
