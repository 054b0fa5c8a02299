"""Keyed permutations: bijections, as good as random, and the same in every release."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from dreamkit.data.permutation import GOLDEN, SMALL, WORD, Permutation, mixed, shuffle_in_place, stream_key

LARGE = 5000
KEYS = [stream_key(7, number) for number in range(600)]
# The least probability of a statistic: the keys are fixed, so a test passes or fails for ever.
LEAST = 1e-3


def probability(counts: Sequence[int]) -> float:
    """Return the probability of counts that differ by as much, if all are equally likely."""
    assert min(counts) >= 5, "the chi-square test needs more samples"
    return float(stats.chisquare(counts).pvalue)


def order(size: int, key: int) -> list[int]:
    permutation = Permutation(size, key)
    return [permutation[position] for position in range(size)]


def test_words_are_those_of_splitmix64() -> None:
    """The published outputs for the seed 1234567 (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64)."""
    words = [mixed(1234567 + number * GOLDEN & WORD) for number in range(1, 6)]
    assert words == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_each_stream_has_its_own_key() -> None:
    streams = [
        (),
        (0,),
        (0, 0),
        (0, 1),
        (1, 0),
        (1,),
        (-1,),
        (2**63,),
        *((0, 0, number) for number in range(2000)),
    ]
    assert len({stream_key(*stream) for stream in streams}) == len(streams)


sizes = st.one_of(st.integers(1, 200), st.integers(SMALL - 3, SMALL + 3), st.integers(SMALL, 12_000))


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(0, WORD))
def test_each_number_comes_once(size: int, key: int) -> None:
    assert sorted(order(size, key)) == list(range(size))


@given(st.integers(SMALL + 1, 2**60), st.integers(0, WORD), st.data())
def test_numbers_of_a_large_permutation_are_in_range_and_differ(
    size: int, key: int, data: st.DataObject
) -> None:
    permutation = Permutation(size, key)
    positions = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20))
    numbers = {permutation[position] for position in positions}
    assert len(numbers) == len(positions) and 0 <= min(numbers) <= max(numbers) < size


@pytest.mark.parametrize("size", [3, LARGE])
@pytest.mark.parametrize("position", [-1, 0, 10**15])
def test_a_position_out_of_range_is_refused(size: int, position: int) -> None:
    permutation = Permutation(size, 1)
    with pytest.raises(IndexError, match=rf"from 0 to {size - 1}, got"):
        _ = permutation[position if position else size]


def test_a_copy_in_another_process_has_the_same_numbers() -> None:
    for size in (50, LARGE):
        copy = pickle.loads(pickle.dumps(Permutation(size, 3)))
        assert [copy[position] for position in range(size)] == order(size, 3)


def test_no_release_changes_an_order() -> None:
    assert order(8, 1) == [0, 3, 7, 1, 2, 6, 5, 4]
    permutation = Permutation(60_000_000, 1)
    assert [permutation[position] for position in (0, 1, 2, 59_999_999)] == [
        46585120,
        15822829,
        51690764,
        19138443,
    ]
    items = list("dreamkit")
    shuffle_in_place(items, 5)
    assert "".join(items) == "teimdrka"


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_each_order_of_few_documents_is_equally_likely(size: int) -> None:
    counts = Counter(tuple(order(size, stream_key(size, number))) for number in range(12_000))
    assert probability([counts[each] for each in permutations(range(size))]) > LEAST


@pytest.mark.parametrize("size", [6, 10, 33, 100])
def test_each_document_is_equally_likely_at_each_place(size: int) -> None:
    counts = np.zeros((size, size), dtype=int)
    for number in range(8 * size):
        counts[range(size), order(size, stream_key(size, number))] += 1
    # Each row and column has the same sum, so there are (size - 1) ** 2 degrees of freedom.
    statistic = ((counts - 8) ** 2 / 8).sum()
    assert LEAST < stats.chi2.sf(statistic, (size - 1) ** 2) < 1 - LEAST


@pytest.mark.parametrize("size", [64, 100, SMALL, LARGE])
def test_no_order_of_the_files_is_left(size: int) -> None:
    """Neighbours become no nearer than others, and no place prefers a part of the data set."""
    distances, ascents, correlations = [], 0, []
    for key in KEYS[: 60 if size >= SMALL else 600]:
        numbers = np.array(order(size, key))
        distances.append(np.abs(np.diff(numbers)))
        ascents += int((np.diff(numbers) > 0).sum())
        correlations.append(stats.pearsonr(numbers, np.arange(size)).statistic * (size - 1) ** 0.5)
    # The distance d of two different numbers below n has the probability 2 (n - d) / (n (n - 1)).
    edges = np.linspace(0, size - 1, 11).astype(int)
    every = np.arange(1, size)
    exact = np.histogram(every, edges + 0.5, weights=2 * (size - every) / (size * (size - 1)))[0]
    counts = np.histogram(np.concatenate(distances), edges + 0.5)[0]
    pairs = counts.sum()
    assert stats.chisquare(counts, exact * pairs).pvalue > LEAST
    assert abs(ascents / pairs - 0.5) < 4 / (12 * pairs) ** 0.5
    assert stats.kstest(correlations, "norm").pvalue > LEAST


@pytest.mark.parametrize("size", [LARGE, 60_000_000])
def test_the_numbers_of_a_position_are_spread_over_all_keys(size: int) -> None:
    for position in (0, 1, size // 2, size - 1):
        bins = [Permutation(size, key)[position] * 20 // size for key in KEYS]
        assert probability(np.bincount(bins, minlength=20).tolist()) > LEAST


def test_positions_that_differ_by_a_step_have_independent_numbers() -> None:
    """Steps are those of batches, ranks and the sides of the network: 8 x 8 squares are hit equally often."""
    size = 60_000_000
    permutation = Permutation(size, KEYS[0])
    side = 7746  # about the square root
    for step in (1, 2, 8, 64, 1000, side - 1, side, side + 1, 2 * side, size // 2):
        counts = Counter(
            (permutation[start] * 8 // size, permutation[start + step] * 8 // size)
            for start in range(0, 1200 * 4999, 4999)
        )
        assert probability([counts[first, second] for first in range(8) for second in range(8)]) > LEAST


@pytest.mark.parametrize("size", [100, LARGE])
def test_orders_of_neighbouring_keys_are_independent(size: int) -> None:
    """As are those of two epochs."""
    rounds = 300 if size == 100 else 20
    fixed, correlations = 0, []
    for key in range(rounds):
        first, second = (np.array(order(size, stream_key(key, epoch))) for epoch in (0, 1))
        fixed += int((first == second).sum())
        correlations.append(stats.pearsonr(first, second).statistic * (size - 1) ** 0.5)
    # Documents at the same place in both orders are about Poisson distributed, one in a pair of orders.
    assert LEAST < stats.poisson.cdf(fixed, rounds) < 1 - LEAST
    assert stats.kstest(correlations, "norm").pvalue > LEAST
