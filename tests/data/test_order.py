"""The order of one data set: each epoch has each document once, whichever the shuffle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from dreamkit.data.order import CHUNK, WINDOW, ChunkPermutation, SetOrder
from dreamkit.recipe.sections import SHUFFLES, Shuffle

sizes = st.one_of(
    st.integers(1, 50),
    st.sampled_from(
        [CHUNK - 1, CHUNK, CHUNK + 1, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + CHUNK, 2 * WINDOW]
    ),
    st.integers(1, 3 * WINDOW),
)


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from(SHUFFLES), st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2, 10**12]))
def test_an_epoch_has_each_document_once(size: int, shuffle: Shuffle, key: int, epoch: int) -> None:
    order = SetOrder(size, shuffle, key)
    documents = [order[epoch * size + position] for position in range(size)]
    assert sorted(documents) == list(range(size))
    assert shuffle != "none" or documents == list(range(size))


@settings(deadline=None)
@given(sizes, st.sampled_from(SHUFFLES), st.lists(st.integers(0, 10**15), min_size=1, max_size=12))
def test_the_document_of_a_turn_depends_on_no_earlier_one(
    size: int, shuffle: Shuffle, turns: list[int]
) -> None:
    order = SetOrder(size, shuffle, 5)
    assert [order[turn] for turn in turns] == [SetOrder(size, shuffle, 5)[turn] for turn in turns]


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
@pytest.mark.parametrize("size", [10, 1000, 3 * WINDOW + 5])
def test_epochs_and_keys_have_orders_of_their_own(shuffle: Shuffle, size: int) -> None:
    orders = [SetOrder(size, shuffle, key) for key in (1, 2)]
    epochs = [[order[turn] for turn in range(start, start + size)] for order in orders for start in (0, size)]
    assert all(first != second for first, second in pairwise([*epochs, epochs[0]]))


def test_a_window_reads_few_chunks_of_neighbours() -> None:
    """All but the chunks around the first document and the last window, which has the rest."""
    size = 50 * WINDOW + 777
    order = ChunkPermutation(size, 3)
    seen: list[int] = []
    for start in range(0, 50 * WINDOW, WINDOW):
        documents = np.sort([order[position] for position in range(start, start + WINDOW)])
        runs = np.split(documents, np.flatnonzero(np.diff(documents) > 1) + 1)
        assert len(runs) <= 17  # 16 chunks, one of which may lie around the end of the data set
        seen.append(int(documents[0]))
    # the windows are no neighbours: their first chunks come in no order
    assert abs(stats.spearmanr(seen, range(50)).statistic) < 0.4


def test_chunks_and_the_documents_of_a_window_come_at_random() -> None:
    size = 20 * WINDOW
    order = ChunkPermutation(size, 4)
    documents = np.array([order[position] for position in range(size)])
    assert abs(stats.pearsonr(documents, np.arange(size)).statistic) < 0.15
    # Within a window, the next document is of another chunk in 15 of 16 cases.
    together = (np.abs(np.diff(documents)) < CHUNK).reshape(-1)[: WINDOW * 19].mean()
    assert together < 3 / 16


def test_the_rest_of_a_chunk_is_of_other_documents_in_each_epoch() -> None:
    size = WINDOW + 100
    last = [
        frozenset(SetOrder(size, "blocks", 9)[epoch * size + position] for position in range(WINDOW, size))
        for epoch in range(9)
    ]
    assert len(set(last)) == 9 and all(len(each) == 100 for each in last)


def test_an_order_holds_no_item_for_each_document() -> None:
    """The state of 60 million documents is as large as that of 10,000."""
    for shuffle in SHUFFLES:
        lengths = []
        for size in (10_000, 60_000_000):
            order = SetOrder(size, shuffle, 1)
            _ = order[size - 1], order[5 * size]
            lengths.append(longest(order))
        assert lengths[0] == lengths[1] <= WINDOW


def longest(value: object) -> int:
    """Return the number of items of the longest list or dict within `value`."""
    if isinstance(value, range | str | int | None):
        return 0
    if isinstance(value, list | tuple):
        return max([len(value), *map(longest, value)])
    return max(longest(each) for each in vars(value).values())


def test_no_release_changes_an_order_of_chunks() -> None:
    order = SetOrder(10**6, "blocks", 1)
    assert [order[turn] for turn in (0, 1, WINDOW, 10**6, 10**6 + 1)] == [
        139704,
        369846,
        188618,
        459857,
        584540,
    ]
