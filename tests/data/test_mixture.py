"""Mixtures: the document at a place is a function of the seed and the place."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch.utils.data import DataLoader

from dreamkit import Dataset, Document, Mixture, Text, TrainingError
from dreamkit.data.shares import BLOCK
from dreamkit.recipe.sections import SHUFFLES, Shuffle


class Numbers(Dataset):
    """A data set of documents `name 0`, `name 1`, ..."""

    Config = object

    def __init__(self, config: tuple[str, int]) -> None:
        self.name, self.length = config

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Document:
        return Document((Text(f"{self.name} {index}"),))


def mixture(
    sizes: Sequence[int],
    weights: Sequence[float],
    seed: int = 0,
    *,
    shuffle: Shuffle | Sequence[Shuffle] = "full",
    length: int | None = None,
) -> Mixture:
    sets = [Numbers((str(number), size)) for number, size in enumerate(sizes)]
    return Mixture(sets, weights, seed, shuffle=shuffle, length=length)


def places(mixed: Mixture, start: int, stop: int) -> list[tuple[int, int]]:
    return [mixed.place(place) for place in range(start, stop)]


data_sets = st.lists(
    st.tuples(st.integers(1, 9) | st.integers(1, 10**8), st.floats(0.01, 10), st.sampled_from(SHUFFLES)),
    min_size=1,
    max_size=4,
)
any_place = st.integers(0, 3 * BLOCK) | st.integers(0, 10**15)


@settings(deadline=None, max_examples=40)
@given(data_sets, st.integers(0, 2**32 - 1), any_place, st.lists(any_place, max_size=4))
def test_a_place_and_the_rest_depend_on_no_earlier_place(
    sets: list[tuple[int, float, Shuffle]], seed: int, start: int, before: list[int]
) -> None:
    sizes, weights, shuffles = zip(*sets, strict=True)
    fresh, jumping = (mixture(sizes, weights, seed, shuffle=shuffles) for _ in range(2))
    expected = places(fresh, start, start + 20)
    for place in before:
        jumping.place(place)
    copy = pickle.loads(pickle.dumps(jumping))
    backwards = [jumping.place(place) for place in reversed(range(start, start + 20))]
    assert expected == backwards[::-1] == places(copy, start, start + 20)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.floats(0.1, 10), st.sampled_from(SHUFFLES)), min_size=1, max_size=4
    ),
    st.integers(0, 2**32 - 1),
)
def test_a_data_set_repeats_no_document_before_its_end(
    sets: list[tuple[int, float, Shuffle]], seed: int
) -> None:
    sizes, weights, shuffles = zip(*sets, strict=True)
    indices: list[list[int]] = [[] for _ in sizes]
    for number, index in places(mixture(sizes, weights, seed, shuffle=shuffles), 0, BLOCK + 200):
        indices[number].append(index)
    for size, shuffle, turns in zip(sizes, shuffles, indices, strict=True):
        for start in range(0, len(turns) - size + 1, size):
            assert sorted(turns[start : start + size]) == list(range(size))
        assert shuffle != "none" or turns == [turn % size for turn in range(len(turns))]


def test_each_block_has_the_share_of_each_set() -> None:
    weights = [7, 10, 0.002, 0.001, 0.0005]
    mixed = mixture([5, 50, 3, 4, 5], weights, 3)
    counts = np.zeros(5)
    for block in range(6):
        for number, _ in places(mixed, block * BLOCK, (block + 1) * BLOCK):
            counts[number] += 1
        assert np.abs(counts - (block + 1) * BLOCK * np.array(weights) / sum(weights)).max() < 1


def test_no_set_falls_in_step_with_a_batch_or_a_rank() -> None:
    """Each remainder of a step has the documents of a set that a random order has."""
    mixed = mixture([10**6, 10**6, 10**6], [1, 1, 2], 1)
    probabilities = []
    for block in range(10):
        sets = np.array([number for number, _ in places(mixed, block * BLOCK, (block + 1) * BLOCK)])
        for step in (2, 3, 4, 8, 16, 64):
            table = [np.bincount(sets[start::step], minlength=3) for start in range(step)]
            probabilities.append(stats.chi2_contingency(table).pvalue)
        runs = (sets[1:] == sets[:-1]).sum()  # 3 of 8 neighbours are of the same set
        assert abs(runs - BLOCK * 3 / 8) < 4 * (BLOCK * 15 / 64) ** 0.5
    assert stats.kstest(probabilities, "uniform").pvalue > 1e-3


def test_blocks_have_orders_of_their_own() -> None:
    mixed = mixture([10**6, 10**6], [1, 1])
    first, second, third = (
        np.array([number for number, _ in places(mixed, start, start + BLOCK)])
        for start in (0, BLOCK, 2 * BLOCK)
    )
    for one, other in ((first, second), (second, third)):
        assert abs((one == other).mean() - 0.5) < 0.04


def test_equal_data_sets_have_different_orders() -> None:
    indices: dict[int, list[int]] = {0: [], 1: []}
    for number, index in places(mixture([500, 500], [1, 1]), 0, 1000):
        indices[number].append(index)
    assert indices[0][:400] != indices[1][:400]


def test_each_seed_and_each_epoch_has_its_own_order() -> None:
    first, second = (places(mixture([50], [1], seed), 0, 100) for seed in (0, 1))
    assert first[:50] != second[:50] and first[:50] != first[50:]
    assert sorted(first[:50]) == sorted(second[:50]) == sorted(first[50:])


def test_a_set_may_keep_the_order_of_its_file() -> None:
    mixed = mixture([10**6, 10**6], [1, 1], shuffle=["none", "full"])
    turns: list[list[int]] = [[], []]
    for number, index in places(mixed, 0, BLOCK):
        turns[number].append(index)
    assert turns[0] == list(range(len(turns[0]))) and turns[1] != sorted(turns[1])


def test_another_process_has_the_same_places() -> None:
    code = (
        "from dreamkit import Mixture; sets = [range(60_000_000), range(7_000_000)]; "
        "mixed = Mixture(sets, [60, 7], 3); print([mixed.place(10**15 - place) for place in range(5)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mixed = mixture([60_000_000, 7_000_000], [60, 7], 3)
    assert other.stdout.strip() == str([mixed.place(10**15 - place) for place in range(5)])


def test_no_release_changes_a_place() -> None:
    mixed = mixture([60_000_000, 7_000_000, 10], [60, 7, 0.001], 3, shuffle=["full", "blocks", "none"])
    chosen = [0, 1, 2, BLOCK, 10**6, 10**9, 10**15]
    assert [mixed.place(place) for place in chosen] == [
        (0, 2666755),
        (0, 25485235),
        (0, 2608817),
        (0, 23001913),
        (0, 28064143),
        (0, 42416107),
        (1, 2871788),
    ]


def test_a_mixture_of_millions_holds_no_item_for_each() -> None:
    """Its state, pickled, is as large as that of thousands of documents."""
    states = []
    for size in (10_000, 60_000_000):
        mixed = mixture([size, size], [6, 7], shuffle=["full", "blocks"])
        places(mixed, 10**9, 10**9 + 300)
        states.append(len(pickle.dumps(mixed)))
    assert abs(states[0] - states[1]) < 10_000 and max(states) < 150_000


def test_a_length_bounds_documents_but_not_places() -> None:
    long, short = (mixture([5, 50], [3.0, 1.0], length=length) for length in (10**14, 9))
    assert (len(long), len(short)) == (10**14, 9)
    assert [document.text for document in short] == [long[place].text for place in range(9)]
    for outside in (-1, 9):
        with pytest.raises(IndexError, match=f"from 0 to 8, got {outside}"):
            short[outside]
    assert short.place(9) == long.place(9)
    assert long[10**14 - 1].text == "{} {}".format(*long.place(10**14 - 1))


def test_a_mixture_without_a_length_has_none() -> None:
    endless = mixture([5], [1])
    with pytest.raises(TypeError, match="no length"):
        len(endless)
    assert endless[10**15].text == f"0 {endless.place(10**15)[1]}"
    for negative in (-1, -(10**15)):
        with pytest.raises(IndexError, match=f"from 0 on, got {negative}"):
            endless[negative]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_the_places_in_turn(workers: int) -> None:
    mixed = mixture([7, 5], [1, 2], 4, length=40)
    loader = DataLoader(mixed, batch_size=4, num_workers=workers, collate_fn=lambda documents: documents)
    texts = [document.text for batch in loader for document in batch]
    assert texts == ["{} {}".format(*mixed.place(place)) for place in range(40)]


def test_weights_may_be_numbers_of_numpy() -> None:
    sizes, weights = [5, 6], [0.25, 0.75]
    assert places(mixture(sizes, np.array(weights)), 0, 50) == places(mixture(sizes, weights), 0, 50)


@pytest.mark.parametrize(
    ("sizes", "weights", "shuffle", "message"),
    [
        ([], [], "full", "no training data"),
        ([3, 0], [1, 1], "full", r"data\.1.*no documents"),
        ([3], [0.0], "full", r"data\.0.*expected a positive, finite weight, got 0\.0"),
        ([3], [float("nan")], "full", "got nan"),
        ([3], ["2"], "full", r"data\.0.*expected a positive, finite weight, got '2' \(string\); change it"),
        ([3, 3], [1, None], "full", r"data\.1.*got null"),
        ([3], [2j], "full", r"got 2j"),
        ([3, 3], [1], "full", "expected a weight for each of 2 data sets, got 1"),
        ([3, 3], [1, 1], ["full"], "expected a shuffle for each of 2 data sets, got 1"),
        ([3], [1], "block", r"data\.0.*one of full, blocks, none, got 'block'.*did you mean 'blocks'"),
        ([3], [1], [None], "got null"),
    ],
)
def test_a_mixture_needs_documents_weights_and_a_known_shuffle(
    sizes: list[int], weights: list[Any], shuffle: Shuffle, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        mixture(sizes, weights, shuffle=shuffle)


def test_sets_are_counted() -> None:
    counts = Counter(number for number, _ in places(mixture([5, 50], [3.0, 1.0]), 0, BLOCK))
    assert counts == {0: 3 * BLOCK // 4, 1: BLOCK // 4}
