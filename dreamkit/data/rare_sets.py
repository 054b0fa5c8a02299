"""The documents of data sets that have less than one document in a block on average."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush


class RareSets:
    """The number of documents of each rare set before any block: its exact number, rounded up or down.

    Rounding alone would sometimes take a document back. So each document of a set has a first block end, at which the
    exact number exceeds the documents before it, and a last one, at which the exact number contains it. All sets
    together have the sum of their exact numbers, rounded. The next document is always one with the earliest last block
    end among those whose first one has come ("earliest deadline first"). None is late: the documents whose first and
    last block ends lie in some blocks are never more than these blocks have.

    This schedule is computed in periods, which are as long as the rarest set needs for a document. Where a period
    starts depends only on the period before it. So any block takes the time of at most three periods, that is, of
    3 * (sum of the rates) / (least rate) documents at about 3 microseconds each, and constant memory.

    Attributes:
        rates: exact number of documents of each set in a block, in parts of a document.
        scale: the number of parts of a document.
        rate: sum of the rates.
        period: number of blocks of a period.
    """

    def __init__(self, rates: Sequence[int], scale: int) -> None:
        self.rates = list(rates)
        self.scale = scale
        self.rate = sum(rates)
        self.period = -(-scale // min(rates, default=scale))  # blocks
        self._schedule = _Schedule(self, 0, [0] * len(self.rates))

    def counts(self, block: int) -> list[int]:
        """Return the number of documents of each set in the blocks before `block`."""
        period = block // self.period
        if self._schedule.start // self.period != period or self._schedule.block > block:
            until = None if period == 0 else self._start(period + 1)
            self._schedule = _Schedule(self, period * self.period, self._start(period), until)
        return self._schedule.counts_before(block)

    def documents(self, block: int) -> int:
        """Return the number of documents of all sets in the blocks before `block`."""
        return (2 * block * self.rate + self.scale) // (2 * self.scale)

    def end(self, document: int) -> int:
        """Return the block end at which the sets have `document` documents for the first time."""
        return -(-(2 * document - 1) * self.scale // (2 * self.rate))

    def window(self, number: int, document: int) -> tuple[int, int]:
        """Return the first and the last block end at which a set may get its document `document`, from 1 on."""
        rate = self.rates[number]
        return (document - 1) * self.scale // rate + 1, -(-document * self.scale // rate)

    def _start(self, period: int) -> list[int]:
        """Return the number of documents of each set before a period.

        A schedule of the period before leads there. It starts after the most urgent documents, so none is late. In this
        period the exact number of each set grows by one or more. So whatever a set has at the start of that period,
        within its bounds, the schedules to and from these numbers exist.
        """
        if period == 0:
            return [0] * len(self.rates)
        before = (period - 1) * self.period
        return _Schedule(self, before, self._urgent(before)).counts_before(before + self.period)

    def _urgent(self, block: int) -> list[int]:
        """Return the exact numbers before `block`, rounded; those up whose next document has the earliest last end."""
        exact = [divmod(block * rate, self.scale) for rate in self.rates]
        counts = [whole for whole, _ in exact]
        started = [number for number, (_, rest) in enumerate(exact) if rest]
        started.sort(key=lambda number: self.window(number, counts[number] + 1)[1])
        for number in started[: self.documents(block) - sum(counts)]:
            counts[number] += 1
        return counts


class _Schedule:
    """The documents of rare sets from block `start` on, before which they have `counts`.

    With `until`, the numbers one period later, the sets get these documents alone.
    """

    def __init__(
        self, sets: RareSets, start: int, counts: Sequence[int], until: Sequence[int] | None = None
    ) -> None:
        self.start = self.block = start
        self._sets = sets
        self._counts = list(counts)
        self._until = until
        self._documents = sum(counts)
        self._waiting: list[tuple[int, int, int]] = []  # heap of first end, last end, set
        self._ready: list[tuple[int, int]] = []  # heap of last end, set
        for number in range(len(self._counts)):
            self._add_next(number)

    def counts_before(self, block: int) -> list[int]:
        """Return the number of documents of each set before `block`, which must not be below an earlier one."""
        self.block = block
        documents = self._sets.documents(block)
        while self._documents < documents:
            self._documents += 1
            end = self._sets.end(self._documents)
            while self._waiting and self._waiting[0][0] <= end:
                _, last, number = heappop(self._waiting)
                heappush(self._ready, (last, number))
            last, number = heappop(self._ready)
            assert last >= end, "a document of a rare set is late"
            self._counts[number] += 1
            self._add_next(number)
        return list(self._counts)

    def _add_next(self, number: int) -> None:
        document = self._counts[number] + 1
        if self._until is None or document <= self._until[number]:
            first, last = self._sets.window(number, document)
            heappush(self._waiting, (first, last, number))
