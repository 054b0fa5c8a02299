"""Beam search without a model: it finds the optimum if nothing is left out, and is greedy with one beam."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from dreamkit.model.beam_search import BeamSearch, Hypothesis, Tokens
from dreamkit.model.events import EndReason

SEEDS = st.integers(0, 2**32)
SIZES = st.tuples(st.integers(2, 4), st.integers(1, 4))  # vocabulary and length
PENALTIES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
END = 0  # the end token


class RandomTexts:
    """Random log probabilities of the next token after each beginning of a text; some tokens are excluded."""

    def __init__(self, seed: int, vocabulary: int, length: int, excluded: float = 0.1) -> None:
        self.vocabulary, self.length, self.excluded = vocabulary, length, excluded
        self.generator = torch.Generator().manual_seed(seed)
        self.known: dict[Tokens, Tensor] = {}

    def after(self, tokens: Tokens) -> Tensor:
        if tokens not in self.known:
            logits = 2 * torch.randn(self.vocabulary, generator=self.generator, dtype=torch.float64)
            left_out = torch.rand(self.vocabulary, generator=self.generator) < self.excluded
            left_out[torch.randint(self.vocabulary, (), generator=self.generator)] = False
            self.known[tokens] = logits.log_softmax(-1).masked_fill(left_out, -torch.inf)
        return self.known[tokens]

    def score(self, tokens: Tokens) -> float:
        return sum(float(self.after(tokens[:at])[token]) for at, token in enumerate(tokens))

    def end(self, tokens: Tokens) -> EndReason | None:
        return "end" if tokens[-1] == END else "tokens" if len(tokens) == self.length else None

    def all(self) -> list[Tokens]:
        """Return all whole texts."""
        every = (
            tokens for n in range(1, self.length + 1) for tokens in product(range(self.vocabulary), repeat=n)
        )
        return [tokens for tokens in every if self.end(tokens) and END not in tokens[:-1]]

    def search(
        self, beams: int, penalty: float, watch: Callable[[BeamSearch], None] = lambda search: None
    ) -> BeamSearch:
        search = BeamSearch(beams, penalty, 2 * beams)
        while not search.is_done:
            watch(search)
            assert search.advance(torch.stack([self.after(each.tokens) for each in search.running]), self.end)
        return search


@settings(deadline=None)
@given(SEEDS, SIZES, PENALTIES)
def test_with_a_beam_for_each_text_the_best_of_all_texts_is_found(
    seed: int, sizes: tuple[int, int], penalty: float
) -> None:
    texts = RandomTexts(seed, *sizes)
    search = texts.search(sizes[0] ** sizes[1], penalty)
    scores = {tokens: texts.score(tokens) / len(tokens) ** penalty for tokens in texts.all()}
    possible = sorted((score for score in scores.values() if score > -torch.inf), reverse=True)
    assert [each.score for each in search.finished] == pytest.approx(possible, abs=1e-9)
    assert search.agreed == search.finished[0].tokens
    assert scores[search.agreed] == pytest.approx(possible[0])


@settings(deadline=None)
@given(SEEDS, SIZES, st.integers(1, 6), PENALTIES)
def test_the_tokens_on_which_hypotheses_agree_begin_the_result(
    seed: int, sizes: tuple[int, int], beams: int, penalty: float
) -> None:
    texts, beginnings = RandomTexts(seed, *sizes), list[Tokens]()

    def watch(search: BeamSearch) -> None:
        beginnings.append(search.agreed)
        assert 1 <= len(search.running) <= beams and len(search.finished) <= beams
        for each in search.running:
            assert each.score == pytest.approx(texts.score(each.tokens)) and each.reason is None
        for each in search.finished:
            scaled = texts.score(each.tokens) / len(each.tokens) ** penalty
            assert each.score == pytest.approx(scaled) and each.reason == texts.end(each.tokens)

    result = texts.search(beams, penalty, watch).agreed
    assert [result[: len(each)] for each in beginnings] == beginnings
    assert [len(each) for each in beginnings] == sorted(len(each) for each in beginnings)


@settings(deadline=None)
@given(SEEDS, SIZES, PENALTIES)
def test_one_beam_is_greedy(seed: int, sizes: tuple[int, int], penalty: float) -> None:
    """Until the end token is the best: with it among the first two, the search goes on with the other."""
    texts = RandomTexts(seed, *sizes, excluded=0.0)
    tokens: Tokens = ()
    while not tokens or texts.end(tokens) is None:
        tokens = (*tokens, int(texts.after(tokens).argmax()))
    greedy, result = tokens, texts.search(1, penalty).agreed
    if greedy[-1] != END:
        assert result == greedy
    else:
        assert result[: len(greedy) - 1] == greedy[:-1]


@given(st.sampled_from([torch.nan, -torch.inf, torch.inf]), st.integers(0, 1))
def test_probabilities_that_are_not_finite_stop_a_search(value: float, row: int) -> None:
    search = BeamSearch(2, 1.0, 4)
    assert search.advance(torch.tensor([[-1.0, -2.0, -3.0]]), lambda tokens: None)
    before = [*search.running]
    log_probs = torch.full((2, 3), -torch.inf if value == -torch.inf else -1.0)
    log_probs[row, 1] = value
    assert not search.advance(log_probs, lambda tokens: None)
    assert search.running == before and search.finished == []


def test_fewer_hypotheses_run_if_more_continuations_end() -> None:
    """Of four candidates, three end, of which two are among the best two."""
    search = BeamSearch(2, 0.0, 4)
    log_probs = torch.tensor([[-1.0, -2.0, -3.0, -4.0, -5.0]])
    assert search.advance(log_probs, lambda tokens: None if tokens[-1] in (2, 4) else "stop")
    assert search.finished == [Hypothesis((0,), -1.0, reason="stop"), Hypothesis((1,), -2.0, reason="stop")]
    assert search.running == [Hypothesis((2,), -3.0)] and search.is_done


def test_a_text_ends_only_among_the_best_candidates() -> None:
    """Those beyond the number of beams are there so that enough hypotheses run."""
    search = BeamSearch(2, 1.0, 4)
    assert search.advance(
        torch.tensor([[-1.0, -2.0, -3.0, -4.0]]), lambda tokens: "stop" if tokens[0] in (1, 2) else None
    )
    assert search.finished == [Hypothesis((1,), -2.0, reason="stop")]
    assert search.running == [Hypothesis((0,), -1.0), Hypothesis((3,), -4.0)] and not search.is_done
