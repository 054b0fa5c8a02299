"""The rows of a batch: balanced by cost, never longer than the limit, never dearer than a row for each sequence."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from random import Random

import pytest
from hypothesis import example, given, strategies as st

from dreamkit.data.packing import attention_status, balanced_rows, row_cost
from dreamkit.parts.specs import LanguageSpec

LIMIT = 2048
LENGTHS = st.lists(st.integers(1, LIMIT), min_size=1, max_size=40)
SPEC = LanguageSpec(dim=64, vocab_size=9, max_length=LIMIT, bos_id=None, eos_ids=(0,), pad_id=0)
BY_DOCUMENT, BY_ROW = row_cost(replace(SPEC, document_attention=True)), row_cost(SPEC)
RACE = (402, 188, 530, 96, 344, 171, 488, 273)  # tokens of eight documents with images, 2,492 in all


def width_of(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return max(sum(lengths[index] for index in row) for row in rows)


def useful_share(lengths: Sequence[int]) -> float:
    rows = balanced_rows(lengths, LIMIT, BY_DOCUMENT)
    return sum(lengths) / (len(rows) * width_of(rows, lengths))


@pytest.mark.parametrize("cost", [BY_DOCUMENT, BY_ROW], ids=["by document", "by row"])
@given(LENGTHS)
def test_rows_hold_each_sequence_once_within_the_limit_and_cost_no_more_than_apart(cost, lengths):
    rows = balanced_rows(lengths, LIMIT, cost)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and row for row in rows) and rows == sorted(rows)
    width = width_of(rows, lengths)
    assert width <= LIMIT
    assert len(rows) * cost(width) <= len(lengths) * cost(max(lengths))
    assert rows == balanced_rows(lengths, LIMIT, cost)


@lru_cache(maxsize=4096)
def narrowest(lengths: tuple[int, ...], count: int) -> int:
    """Return the least width of `count` rows, by trying every layout."""
    best = sum(lengths)

    def place(number: int, loads: list[int]) -> None:
        nonlocal best
        if max(loads) >= best:
            return
        if number == len(lengths):
            best = max(loads)
            return
        for row in {load: row for row, load in enumerate(loads)}.values():
            loads[row] += lengths[number]
            place(number + 1, loads)
            loads[row] -= lengths[number]

    place(0, [0] * count)
    return best


@given(st.lists(st.integers(1, LIMIT), min_size=1, max_size=7))
@example([131, 131, 131, 131, 132, 906, 907])  # 2 rows of 1299 or 1300: 95.03 % or 94.96 %
def test_rows_are_95_percent_useful_wherever_any_layout_is(lengths):
    longest_first = tuple(sorted(lengths, reverse=True))
    counts = range(1, len(lengths) + 1)
    widths = [(count, narrowest(longest_first, count)) for count in counts]
    best = max(sum(lengths) / (count * width) for count, width in widths if width <= LIMIT)
    assert best < 0.95 or useful_share(lengths) >= 0.95


@given(st.lists(st.integers(1, LIMIT // 8), min_size=1, max_size=64))
def test_many_short_sequences_leave_little_padding(lengths):
    assert useful_share(lengths) >= 0.95


@pytest.mark.parametrize("count", [300, 5000])
def test_enormous_batches_are_divided_too(count):
    random = Random(0)
    lengths = [random.randint(1, LIMIT) for _ in range(count)]
    rows = balanced_rows(lengths, LIMIT, BY_DOCUMENT)
    assert sorted(index for row in rows for index in row) == list(range(count))
    assert width_of(rows, lengths) <= LIMIT and useful_share(lengths) > 0.9


def test_documents_of_a_race_fill_two_rows_evenly():
    rows = balanced_rows(RACE, LIMIT, BY_DOCUMENT)
    assert sum(RACE) == 2492 and len(rows) == 2
    assert sum(RACE) / (2 * width_of(rows, RACE)) > 0.99


def test_the_attention_of_training_has_a_line():
    lines = {
        attention_status(replace(SPEC, packing=packing, document_attention=document_attention))
        for packing, document_attention in ((True, True), (True, False), (False, False))
    }
    assert len(lines) == 3 and all(line.startswith("attention: ") for line in lines)


def test_attention_over_whole_rows_makes_rows_shorter():
    lengths = [900, 100] * 4
    assert len(balanced_rows(lengths, 4096, BY_DOCUMENT)) == 1
    assert len(balanced_rows(lengths, 4096, BY_ROW)) == 4
