"""Checks of a language model's KV cache: decoding in several calls, and rows that leave, join and are cut.

A call of `forward` is written as the numbers of tokens that the rows get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from dreamkit.errors import count, describe_value
from dreamkit.testing.cached_rows import CachedRows, Documents
from dreamkit.testing.check import check
from dreamkit.testing.expect import expect_close, expect_true
from dreamkit.testing.subject_kinds import LanguageSubject

KIND = "language_model"
seeds = st.integers(0, 999)
chunks = st.lists(st.integers(1, 4), min_size=1, max_size=3)  # tokens of all rows in each call


def calls(rows: int, most: int = 2) -> st.SearchStrategy[list[tuple[int, ...]]]:
    """Return lists of calls with this number of rows."""
    call = st.tuples(*[st.integers(0, 5)] * rows).filter(any)
    return st.lists(call, min_size=1, max_size=most)


def _cannot_cache(subject: LanguageSubject) -> str | None:
    return None if subject.part.spec.cache else "its spec has cache=False"


def _rows(subject: LanguageSubject, documents: int, calls: int, seed: int) -> CachedRows:
    """Return rows of random documents that are long enough for this many calls."""
    texts = Documents(subject, documents, subject.window + 5 * calls, seed)
    return CachedRows(texts, range(documents))


def _even(subject: LanguageSubject, calls: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return calls in which each row gets as many tokens as the first one, if the part's cache takes no padding."""
    if subject.part.spec.cache_padding:
        return [[*call] for call in calls]
    return [[call[0] or 1] * len(call) for call in calls]


def _past_window(subject: LanguageSubject, rows: int) -> list[list[int]]:
    """Return a call after which the next ones are beyond the sliding window; none without one."""
    return [[subject.window] * rows] if subject.window else []


@check(KIND, unless=_cannot_cache, calls=calls(2, most=5), seed=seeds)
def cached_decoding(subject: LanguageSubject, calls: list[tuple[int, ...]], seed: int) -> None:
    """Several calls with a cache give the hidden states of one full pass. `calls` lists the tokens of two rows in each.

    The cache does not change what a model writes, even if a prompt is computed in pieces, or another row of the batch
    advances more slowly.
    """
    _rows(subject, 2, len(calls), seed).run(*_past_window(subject, 2), *_even(subject, calls))


@check(
    KIND,
    unless=_cannot_cache,
    before=calls(3),
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    after=calls(4),
    seed=seeds,
)
def selected_rows(
    subject: LanguageSubject,
    before: list[tuple[int, ...]],
    rows: list[int],
    after: list[tuple[int, ...]],
    seed: int,
) -> None:
    """`select_rows` drops, orders and copies rows; they continue as in one full pass. A part may answer False.

    Generation computes nothing for documents that have ended, and computes a prompt of several documents once.
    """
    batch = _rows(subject, 3, len(before) + len(after) + 2, seed)
    batch.fill(*_past_window(subject, 3), [1] * 3, *_even(subject, before))
    rows = [*rows, rows[0]]  # a copy
    if batch.select(rows):
        width = len(rows)
        narrow = [call[:width] for call in after if any(call[:width])]
        batch.run(*_even(subject, narrow), [1] * width)


@check(KIND, unless=_cannot_cache, first=calls(2), second=calls(2), after=calls(4), seed=seeds)
def joined_rows(
    subject: LanguageSubject,
    first: list[tuple[int, ...]],
    second: list[tuple[int, ...]],
    after: list[tuple[int, ...]],
    seed: int,
) -> None:
    """`join_rows` appends rows of any length; all continue as in one full pass. A part may answer False.

    Documents join others that are being written.
    """
    texts = _rows(subject, 2, max(len(first), len(second)) + len(after) + 2, seed).texts
    batch = CachedRows(texts)
    for documents, before in (((0, 1), first), ((1, 0), second)):
        other = CachedRows(texts, documents)
        other.fill(*_past_window(subject, 2), [1, 1], *_even(subject, before))
        batch.steps = [*other.steps, *batch.steps]
        if not batch.join(other):
            return
    batch.run(*_even(subject, after), [1] * 4)


@check(
    KIND,
    unless=_cannot_cache,
    before=calls(2),
    cut=st.tuples(*[st.integers(0, 6)] * 2),
    after=calls(2),
    seed=seeds,
)
def truncated_rows(
    subject: LanguageSubject,
    before: list[tuple[int, ...]],
    cut: tuple[int, int],
    after: list[tuple[int, ...]],
    seed: int,
) -> None:
    """`truncate_rows` leaves the first tokens; others after them get the states of one full pass. False is possible.

    The next turn of a conversation computes only what is new.
    """
    batch = _rows(subject, 2, len(before) + len(after) + 2, seed)
    batch.fill(*_past_window(subject, 2), [1, 1], *_even(subject, before))
    if batch.truncate([max(0, length - tokens) for length, tokens in zip(batch.lengths, cut, strict=True)]):
        batch.documents = [batch.texts.branch(row, batch.lengths[row]) for row in range(2)]
        batch.run(*_even(subject, after), [1, 1])


def _computed(texts: Documents, documents: Sequence[int], calls: Sequence[Sequence[int]]) -> CachedRows:
    rows = CachedRows(texts, documents)
    rows.fill(*calls)
    return rows


@check(
    KIND,
    unless=_cannot_cache,
    before=calls(3),
    rows=st.lists(st.integers(0, 2), min_size=2, max_size=3),
    after=calls(3),
    seed=seeds,
)
def copied_rows(
    subject: LanguageSubject,
    before: list[tuple[int, ...]],
    rows: list[int],
    after: list[tuple[int, ...]],
    seed: int,
) -> None:
    """The rows that `copy_rows` copies continue like the original ones, and neither change the others.

    The beginning that documents share is computed once. A part may answer None.
    """
    original = _rows(subject, 3, len(before) + len(after) + 3, seed)
    original.fill(*_past_window(subject, 3), [1] * 3, *_even(subject, before))
    copied = original.copy(rows)
    if copied is None:
        return
    branches = [(row, original.lengths[row]) for row in rows]
    copied.documents = [original.texts.branch(row, length) for row, length in branches]
    width = len(rows)
    for call in after:
        if any(call[:width]):
            copied.run(*_even(subject, [call[:width]]))
        original.run(*_even(subject, [call]))
    copied.run([1] * width)
    copied.select([0] * 2)
    original.run([1] * 3)


REFUSALS: dict[str, Callable[[CachedRows], bool]] = {
    "select_rows": lambda rows: rows.select([1, 1]),
    "join_rows": lambda rows: rows.join(_computed(rows.texts, rows.documents, [[1, 1]])),
    "truncate_rows": lambda rows: rows.truncate([1, 1]),
    "copy_rows": lambda rows: rows.copy([1]) is not None,
}


@check(KIND, unless=_cannot_cache, chunks=chunks, seed=seeds)
def refused_rows(subject: LanguageSubject, chunks: list[int], seed: int) -> None:
    """The methods of rows return a bool, or a cache from `copy_rows`; with False or None, they have changed nothing.

    The documents go on without it.
    """
    calls = [[tokens] * 2 for tokens in chunks]
    texts = _rows(subject, 2, 2 * len(calls), seed).texts
    for method, changes in REFUSALS.items():
        rows = _computed(texts, (0, 1), calls)
        if not changes(rows):
            expected = _computed(texts, (0, 1), [*calls, calls[0]]).hidden
            actual = rows.fill(calls[0])
            expect_close(actual, expected, f"hidden after {method} was refused", "hidden without that call")


@check(KIND, unless=_cannot_cache, arrivals=st.lists(calls(2), min_size=1, max_size=3), seed=seeds)
def cache_size(subject: LanguageSubject, arrivals: list[list[tuple[int, ...]]], seed: int) -> None:
    """After rows join, leave, are cut or copied, a cache takes the memory of one that has computed just these tokens.

    Memory bounds how many documents are written at once, so that what has ended must be freed. A part may answer None.
    """
    part, texts = subject.part, _rows(subject, 2, 4, seed).texts

    def expect_freed(rows: CachedRows) -> None:
        actual = part.cache_bytes(rows.cache)
        alone = part.cache_bytes(_computed(texts, rows.documents, [rows.lengths]).cache)
        subject.call_text = f"cache_bytes after {', '.join(rows.steps)}"
        expect_true(
            actual <= alone, count(actual, "byte"), f"at most {alone}, as of a new cache with these tokens"
        )

    rows = _computed(texts, (0, 1), _even(subject, [(5, 1), (1, 3)]))
    size = part.cache_bytes(rows.cache)
    if size is None:
        return
    expect_true(isinstance(size, int) and size > 0, describe_value(size), "a positive number of bytes")
    for before in arrivals:
        if rows.join(_computed(texts, (0, 1), _even(subject, before))):
            expect_freed(rows)
            rows.fill(*_even(subject, [[2, *[1] * (len(rows.documents) - 1)]]))
        if copied := rows.copy([rows.lengths.index(min(rows.lengths))] * 2):
            expect_freed(copied)
        if rows.select([*range(len(rows.documents))][-2:]):
            expect_freed(rows)
    if rows.truncate([(length + 1) // 2 for length in rows.lengths]):
        expect_freed(rows)
