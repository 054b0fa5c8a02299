"""What is made of measured samples: medians, what two rounds differ by, ratios, floors, a line through two sizes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Figure(NamedTuple):
    """A measured `value`, and its `spread`: what two rounds of measuring it differ by."""

    value: float
    spread: float = 0.0

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Figure:
        """Of the samples of two rounds: halfway between their medians."""
        one, two = median(first), median(second)
        return cls((one + two) / 2, abs(one - two))


def differ(one: Figure, other: Figure) -> bool:
    """Whether two figures differ by more than either was found to differ from itself."""
    return abs(one.value - other.value) > max(one.spread, other.spread)


def ratio(one: Figure, other: Figure) -> float:
    """How many times `other` is in `one`; 1 where no difference was found."""
    return one.value / other.value if differ(one, other) else 1.0


def extrapolated(small: int, at_small: Figure, large: int, at_large: Figure, size: int) -> Figure:
    """The figure at `size`, on the line through two sizes; its spread is the largest that theirs allow."""
    assert small < large <= size, "a line goes on from two sizes"
    steps = (size - large) / (large - small)
    return Figure(
        at_large.value + steps * (at_large.value - at_small.value),
        (1 + steps) * at_large.spread + steps * at_small.spread,
    )


class Work(NamedTuple):
    """What has to be moved and computed at least, however it is done: bytes, and floating-point operations."""

    bytes: float
    flops: float

    def floor(self, bandwidth: float, rate: float) -> float:
        """The roofline: the least seconds it can take, at `bandwidth` bytes and `rate` operations a second."""
        return max(self.bytes / bandwidth, self.flops / rate)
