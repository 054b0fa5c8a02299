"""Thinned lines: bounded, with the extremes of each part of all points."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from random import Random

import pytest
from hypothesis import given, strategies as st

from dreamkit.pages.thinning import MOST, Bucket, ThinnedLine


def drawn(seed: int, number: int, gap: int) -> list[tuple[float, float]]:
    """Return a walk of this many points, whose distances are random up to `gap`."""
    random = Random(seed)
    xs = accumulate(random.randint(0, gap) for _ in range(number))
    return [(float(x), round(random.gauss(0, 10 ** random.randint(-3, 5)), 3)) for x in xs]


long_lines = st.builds(drawn, st.integers(0, 2**32), st.integers(1, 2000), st.sampled_from([1, 7, 5000]))


def thinned(points: list[tuple[float, float]]) -> ThinnedLine:
    line = ThinnedLine()
    for point in points:
        line.add(*point)
    return line


@given(long_lines)
def test_a_line_keeps_its_ends_its_extremes_and_few_points(points: list[tuple[float, float]]) -> None:
    line = thinned(points)
    kept = [*line.points()]
    assert set(kept) <= set(points) and len(kept) <= 4 * MOST
    assert (line.first, line.last, len(line)) == (points[0], points[-1], len(points))
    ys = [y for _, y in points]
    assert {min(ys), max(ys)} <= {y for _, y in kept}
    assert all(before[0] <= after[0] for before, after in pairwise(kept))


@given(long_lines)
def test_each_bucket_has_the_extremes_of_its_points(points: list[tuple[float, float]]) -> None:
    """So a chart whose columns are buckets has the same pixels with all points."""
    line = thinned(points)
    assert len(line._buckets) <= MOST
    for number, bucket in line._buckets.items():
        inside = [point for point in points if point[0] // line._width == number]
        ys = [y for _, y in inside]
        assert (bucket.lowest[1], bucket.highest[1], bucket.count) == (min(ys), max(ys), len(ys))
        assert (bucket.first, bucket.last) == (inside[0], inside[-1])
        assert bucket.sum_y == pytest.approx(math.fsum(ys), abs=1e-3)


@given(long_lines)
def test_means_are_within_the_extremes(points: list[tuple[float, float]]) -> None:
    line = thinned(points)
    ys = [y for _, y in points]
    means = line.means()
    assert bool(means) == line.is_smoothed
    assert all(min(ys) - 1e-3 <= y <= max(ys) + 1e-3 for _, y in means)


def test_a_mean_of_a_straight_line_has_no_lag() -> None:
    means = thinned([(float(x), 2.0 * x) for x in range(10_000)]).means()
    assert all(y == pytest.approx(2 * x, abs=100) for x, y in means)


def test_a_long_line_takes_a_constant_number_of_operations_for_each_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joins = 0

    def join(bucket: Bucket, after: Bucket, original: object = Bucket.join) -> None:
        nonlocal joins
        joins += 1
        original(bucket, after)  # type: ignore[operator]

    monkeypatch.setattr(Bucket, "join", join)
    number = 100_000
    line = thinned([(float(x), math.sin(x)) for x in range(number)])
    assert len([*line.points()]) <= 4 * MOST
    assert joins < 1.1 * number


def test_a_scaled_line_has_scaled_points() -> None:
    points = [(float(x), math.sin(x)) for x in range(0, 3000, 7)]
    line = thinned(points)
    scaled = line.scaled(32)
    assert [*scaled.points()] == [(32 * x, y) for x, y in line.points()]
    assert [x for x, _ in scaled.means()] == pytest.approx([32 * x for x, _ in line.means()])
    assert [*line.points()] == [*thinned(points).points()]
