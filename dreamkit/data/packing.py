"""The rows of a batch: which sequences share a row of the language model's input."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from dreamkit.parts.specs import LanguageSpec

# FLOPs of a token in the layers, in units of the width: about 12 D^2 weights a layer against D for a pair of tokens,
# at 2 FLOPs a weight and 4 D a pair (arXiv 2001.08361, table 1, with attention over all pairs).
TOKEN_COST = 6
GOOD = 0.95  # least share of useful work that is searched for
MOST_COUNTS = 16  # numbers of rows that are tried
MOST_STEPS = 2000  # of one search
MOST_SEARCHED = 250  # sequences of one search; among more, even rows leave little padding

Rows = list[list[int]]


def balanced_rows(lengths: Sequence[int], max_length: int, row_cost: Callable[[int], int]) -> Rows:
    """Return the indices of the sequences in each row, so that the rows cost little.

    Each row is as wide as the widest. The result depends on the arguments alone, and never costs more than one row for
    each sequence.

    Args:
        lengths: number of tokens of each sequence, at most `max_length`.
        max_length: greatest width of a row.
        row_cost: cost of one row by its width, as `row_cost` returns it.
    """
    longest, tokens = max(lengths), sum(lengths)
    best = [[index] for index in range(len(lengths))]
    cost = len(lengths) * row_cost(longest)
    # of rows without padding, and of rows that have room for the longest sequence
    full = {count: count * row_cost(-(-tokens // count)) for count in range(1, len(lengths))}
    least = {count: max(cost, count * row_cost(longest)) for count, cost in full.items()}
    alone = sum(2 * length > max_length for length in lengths)  # no two of these share a row
    counts = [
        count
        for count in sorted(least, key=least.__getitem__)
        if count >= alone and count * max_length >= tokens
    ]
    tried = 0
    for layout in (_even_rows, _narrow_rows):
        for count in counts[:MOST_COUNTS]:
            # at least one layout is tried: nearly full rows of one sequence each may leave short ones alone
            is_good = cost * GOOD <= count * row_cost(tokens // count)
            if cost <= least[count] or (tried and is_good):
                break
            tried += 1
            rows = layout(lengths, count, max(longest, min(max_length, int(tokens / (GOOD * count)))))
            width = max(sum(lengths[index] for index in row) for row in rows)
            if width <= max_length and count * row_cost(width) < cost:
                best, cost = rows, count * row_cost(width)
    return sorted(sorted(row) for row in best)


def row_cost(spec: LanguageSpec) -> Callable[[int], int]:
    """Return the cost of one row by its width, in units of the FLOPs of a pair of tokens.

    With `document_attention`, pairs are those of the documents, in whatever rows they are.
    """
    token = TOKEN_COST * spec.dim
    if spec.document_attention:
        return lambda width: token * width
    return lambda width: token * width + width * width


def attention_status(spec: LanguageSpec) -> str:
    """Return the line of `train` that names the attention of training."""
    if spec.document_attention:
        return "attention: in each document of a row alone"
    if not spec.packing:
        return "attention: over rows of one document each, since the language model cannot keep more apart"
    return "attention: over whole rows, since the language model's spec has no document_attention"


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _even_rows(lengths: Sequence[int], count: int, width: int) -> Rows:
    """Put each sequence, the longest first, into the row with the fewest tokens (Graham, 1969); ignore `width`."""
    rows: Rows = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for index in _longest_first(lengths):
        load, number = loads[0]
        rows[number].append(index)
        heapq.heapreplace(loads, (load + lengths[index], number))
    return rows


def _narrow_rows(lengths: Sequence[int], count: int, width: int) -> Rows:
    """Search for rows of at most `width` tokens; return one row of all sequences if none is near.

    Each sequence, the longest first, goes into the fullest row that has room for it, else into the next fullest.
    """
    order = _longest_first(lengths)
    if len(lengths) > MOST_SEARCHED:
        return [order]
    rows: Rows = [[] for _ in range(count)]
    free = [width] * count
    steps = 0

    def place(number: int) -> bool:
        nonlocal steps
        if number == len(order):
            return True
        length = lengths[order[number]]
        for room in sorted({room for room in free if room >= length}):
            steps += 1
            if steps > MOST_STEPS:
                return False
            row = free.index(room)
            free[row] -= length
            rows[row].append(order[number])
            if place(number + 1):
                return True
            rows[row].pop()
            free[row] += length
        return False

    return rows if place(0) else [order]
