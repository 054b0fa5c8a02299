"""Documents of each data set before a block: the exact share, rounded up or down, and never fewer than before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from dreamkit.data.rare_sets import RareSets
from dreamkit.data.shares import BLOCK, Shares

FAR = 10**15 // BLOCK  # the block of place 10**15


def assert_exact(rows: Sequence[Sequence[int]], rates: Sequence[Fraction], start: int) -> None:
    """Assert that `rows`, before the blocks from `start` on, are rounded multiples of `rates`, and never fall."""
    for block, counts in enumerate(rows, start):
        for count, rate in zip(counts, rates, strict=True):
            assert count in (int(block * rate), -int(-block * rate // 1)), (block, counts)
    for before, after in pairwise(rows):
        assert all(count <= following for count, following in zip(before, after, strict=True))


def exact_rates(weights: Sequence[float]) -> list[Fraction]:
    fractions = [Fraction(str(weight)) for weight in weights]
    total = sum(fractions)
    return [BLOCK * fraction / total for fraction in fractions]


def period_documents(sets: RareSets) -> int:
    """Return the number of documents of a period."""
    return sets.period * sets.rate // sets.scale


# From 2 documents of 3 to 1 of a billion; sets with equal weights, and with weights near the limit of rare sets.
weights = st.one_of(
    st.integers(1, 12),
    st.floats(0.01, 100),
    st.floats(-9, 0).map(lambda exponent: 10**exponent),
    st.sampled_from([1 / BLOCK, 0.9 / BLOCK, 1e-4, 1e-300, 1e300]),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(weights, min_size=1, max_size=12), st.sampled_from([0, 1, 1000, FAR]) | st.integers(0, FAR))
def test_each_set_has_its_share_before_each_block(weights: list[float], start: int) -> None:
    shares = Shares(weights)
    if period_documents(shares.rare_sets) > 10**4:  # a late block would take long
        start %= 1000
    rows = [shares.counts(block) for block in range(start, start + 30)]
    assert [sum(counts) for counts in rows] == [block * BLOCK for block in range(start, start + 30)]
    assert_exact(rows, exact_rates(weights), start)


def test_a_weight_is_the_number_as_written() -> None:
    """In binary, 0.1 is more than a tenth: place 10**15 would show it."""
    shares = Shares([0.1, 0.2, 0.7])
    assert shares.counts(10 * FAR) == [FAR * BLOCK, 2 * FAR * BLOCK, 7 * FAR * BLOCK]
    assert shares.counts(0) == [0, 0, 0]


rates = st.integers(2, 60).flatmap(
    lambda scale: st.tuples(st.lists(st.integers(1, scale - 1), min_size=1, max_size=9), st.just(scale))
)


@settings(deadline=None, max_examples=400)
@given(rates, st.integers(0, 10**9))
def test_rare_sets_are_in_time_in_every_period(sets: tuple[list[int], int], first: int) -> None:
    """Any period after the first one starts without a look at those before it."""
    numbers, scale = sets
    exact = [Fraction(number, scale) for number in numbers]
    rare = RareSets(numbers, scale)
    for start in (0, max(0, first * rare.period - 3)):
        blocks = range(start, start + 3 * rare.period + 6)
        rows = [rare.counts(block) for block in blocks]
        assert [sum(counts) for counts in rows] == [rare.documents(block) for block in blocks]
        assert all(
            abs(sum(counts) - block * sum(exact)) <= 0.5 for block, counts in zip(blocks, rows, strict=True)
        )
        assert_exact(rows, exact, start)


@settings(deadline=None, max_examples=100)
@given(rates, st.integers(0, 10**6), st.integers(0, 2**32))
def test_a_block_has_the_same_counts_after_any_other(
    sets: tuple[list[int], int], start: int, seed: int
) -> None:
    jumping, steady = RareSets(*sets), RareSets(*sets)
    rows = {block: steady.counts(block) for block in range(start, start + 3 * steady.period)}
    for block in random.Random(seed).choices(list(rows), k=12):
        assert jumping.counts(block) == rows[block] == RareSets(*sets).counts(block)


@pytest.mark.parametrize("weights", [[1] * 5000, [1e4, 1, 1, 0.3], [10.0**-power for power in range(8)]])
def test_the_last_places_cost_as_little_as_the_first(
    weights: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documents of rare sets that are scheduled for a place do not grow with its number."""
    scheduled = []
    window = RareSets.window
    monkeypatch.setattr(RareSets, "window", lambda *arguments: scheduled.append(1) or window(*arguments))
    shares = Shares(weights)
    counts = shares.counts(FAR)
    assert len(scheduled) <= 4 * (period_documents(shares.rare_sets) + len(weights))
    assert_exact([counts], exact_rates(weights), FAR)
