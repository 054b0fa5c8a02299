"""Lines of any number of points, thinned to what a chart can show. This module loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

MOST: Final = 240  # buckets of a line, about one for each 1.5 units of a chart's width
SMOOTH: Final = 30  # a running mean covers this fraction of a line's buckets, 1/30, on each side

Point = tuple[float, float]


@dataclass(slots=True)
class Bucket:
    """The first, lowest, highest and last of neighbouring points, with the sums of all of them."""

    first: Point
    lowest: Point
    highest: Point
    last: Point
    sum_x: float
    sum_y: float
    count: int = 1

    def join(self, after: Bucket) -> None:
        """Add the points of the bucket after this one."""
        self.lowest = min(self.lowest, after.lowest, key=_y)
        self.highest = max(self.highest, after.highest, key=_y)
        self.last = after.last
        self.sum_x, self.sum_y = self.sum_x + after.sum_x, self.sum_y + after.sum_y
        self.count += after.count

    def scaled(self, factor: float) -> Bucket:
        """Return this bucket with each `x` multiplied by a positive factor."""
        first, lowest, highest, last = (
            (factor * x, y) for x, y in (self.first, self.lowest, self.highest, self.last)
        )
        return Bucket(first, lowest, highest, last, factor * self.sum_x, self.sum_y, self.count)

    def points(self) -> list[Point]:
        """Return the four points, each once, in their order."""
        return sorted({self.first, self.lowest, self.highest, self.last})


class ThinnedLine:
    """A line that keeps four points of each of at most `MOST` buckets of equal width.

    At the width of a chart it looks like the line of all points (M4: Jugel et al., VLDB 2014). The buckets are doubled
    in width when there are too many, so that `add` takes constant time and the line constant memory.
    """

    def __init__(self) -> None:
        self._width = 1.0
        self._buckets: dict[int, Bucket] = {}

    def add(self, x: float, y: float) -> None:
        """Add a point. Points come in the order of `x`."""
        point = (x, y)
        self._put(int(x // self._width), Bucket(point, point, point, point, x, y))
        while len(self._buckets) > MOST:
            self._width *= 2
            earlier, self._buckets = self._buckets, {}
            for number, bucket in earlier.items():
                self._put(number // 2, bucket)

    def _put(self, number: int, bucket: Bucket) -> None:
        if number in self._buckets:
            self._buckets[number].join(bucket)
        else:
            self._buckets[number] = bucket

    def __len__(self) -> int:
        """Return the number of points that were added."""
        return sum(bucket.count for bucket in self._buckets.values())

    @property
    def last(self) -> Point:
        """The point that was added last."""
        return next(reversed(self._buckets.values())).last

    @property
    def first(self) -> Point:
        """The point that was added first."""
        return next(iter(self._buckets.values())).first

    def scaled(self, factor: float) -> ThinnedLine:
        """Return this line with each `x` multiplied by a positive factor."""
        line = ThinnedLine()
        line._width = self._width * factor
        line._buckets = {number: bucket.scaled(factor) for number, bucket in self._buckets.items()}
        return line

    @property
    def is_smoothed(self) -> bool:
        """True if there are enough buckets for a running mean."""
        return len(self._buckets) >= SMOOTH

    def points(self) -> Iterator[Point]:
        """Yield the points that are kept."""
        for bucket in self._buckets.values():
            yield from bucket.points()

    def means(self) -> list[Point]:
        """Return a running mean of all points, at the mean `x` of each bucket; none of a short line."""
        if not self.is_smoothed:
            return []
        buckets = [*self._buckets.values()]
        half = len(buckets) // SMOOTH
        sums = [0.0, *accumulate(bucket.sum_y for bucket in buckets)]
        counts = [0, *accumulate(bucket.count for bucket in buckets)]
        means = []
        for number, bucket in enumerate(buckets):
            reach = min(half, number, len(buckets) - 1 - number)  # as far to both sides: a mean has no lag
            low, high = number - reach, number + reach + 1
            mean = (sums[high] - sums[low]) / (counts[high] - counts[low])
            means.append((bucket.sum_x / bucket.count, mean))
        return means


def _y(point: Point) -> float:
    return point[1]
