"""What is made of measured samples, by known numbers and by properties."""

from math import nan
from statistics import median

import pytest
import torch
from hypothesis import given, strategies as st

from dreamkit.kernels.bench import assemble_embeddings, query_projection
from dreamkit.kernels.bench.figures import Figure, Work, differ, extrapolated, ratio
from dreamkit.kernels.bench.measurements import at_least, at_most

times = st.floats(min_value=1e-6, max_value=1e3)
figures = st.builds(Figure, times, st.floats(min_value=0, max_value=1))
rounds = st.lists(times, min_size=1, max_size=9)


def test_a_figure_lies_halfway_between_the_medians_of_two_rounds() -> None:
    assert Figure.of([1.0, 9.0, 2.0], [4.0, 4.0, 0.1]) == Figure(3.0, 2.0)


@given(first=rounds, second=rounds)
def test_both_medians_lie_within_the_spread(first: list[float], second: list[float]) -> None:
    figure = Figure.of(first, second)
    for each in (first, second):
        assert abs(median(each) - figure.value) <= figure.spread / 2 + 1e-9
    assert figure == Figure.of(second, first)


@given(one=figures, other=figures)
def test_what_one_differs_from_itself_by_is_no_difference(one: Figure, other: Figure) -> None:
    gap = abs(one.value - other.value)
    assert differ(one, other) == (gap > one.spread and gap > other.spread) == differ(other, one)
    assert ratio(one, other) == (one.value / other.value if differ(one, other) else 1)
    assert ratio(one, one) == 1


def test_a_difference_inside_the_spread_of_either_is_none() -> None:
    assert ratio(Figure(10.0, 1.0), Figure(5.0, 2.0)) == 2
    assert ratio(Figure(10.0, 5.0), Figure(5.0, 0.0)) == 1
    assert ratio(Figure(10.0, 0.0), Figure(5.0, 5.1)) == 1


@given(
    start=st.floats(-10, 10), slope=st.floats(-10, 10), size=st.integers(9, 99), shift=st.tuples(times, times)
)
def test_a_line_goes_on_and_its_spread_holds_every_line_through_both(
    start: float, slope: float, size: int, shift: tuple[float, float]
) -> None:
    low, high = shift
    found = extrapolated(4, Figure(start + 4 * slope, low), 8, Figure(start + 8 * slope, high), size)
    assert found.value == pytest.approx(start + size * slope, abs=1e-6)
    moved = extrapolated(4, Figure(start + 4 * slope - low), 8, Figure(start + 8 * slope + high), size)
    assert found.value + found.spread == pytest.approx(moved.value, rel=1e-6, abs=1e-6)


def test_thirty_two_layers_of_four_and_eight() -> None:
    assert extrapolated(4, Figure(1.0, 0.1), 8, Figure(1.5, 0.2), 32) == Figure(4.5, pytest.approx(2.0))


def test_the_floor_is_the_longer_of_moving_and_computing() -> None:
    work = Work(bytes=4e9, flops=1e12)
    assert work.floor(bandwidth=4e12, rate=1e12) == 1
    assert work.floor(bandwidth=1e9, rate=1e12) == 4


def test_the_work_of_one_image() -> None:
    """64 rows of 4096, a matrix of 768 rows of them, the norm's weight, and a context of 64 times 768."""
    rows, matrix, context = 64 * 4096, 768 * 4096, 64 * 768
    forward = query_projection.work(1, 768, is_backward=False)
    assert forward == (2 * (rows + 4096 + matrix + context), 2 * 64 * 4096 * 768)
    both = query_projection.work(1, 768, is_backward=True)
    assert both == (2 * (3 * (rows + 4096 + matrix) + 2 * context), 3 * forward.flops)


def test_targets_are_told_by_the_worst_case() -> None:
    found = [(3.5, "a"), (2.4, "b")]
    assert at_least("t", 3.0, found, "x") == ("t", False, "2.40 x (b), 20% short")
    assert at_least("t", 2.0, found, "x") == ("t", True, "2.40 x (b)")
    assert at_most("t", 2.8, found, "us") == ("t", False, "3.50 us (a), 25% too much")
    assert at_most("t", 3.5, found, "us") == ("t", True, "3.50 us (a)")


def test_a_target_of_which_something_is_missing_is_open_or_missed_but_never_met() -> None:
    assert at_least("t", 3.0, [(None, "a")], "x") == ("t", None, "not measured")
    assert at_least("t", 3.0, [(None, "a"), (4.0, "b")], "x") == (
        "t",
        None,
        "4.00 x (b); 1 of 2 not measured",
    )
    assert at_least("t", 3.0, [(None, "a"), (2.0, "b")], "x").met is False


def test_a_target_of_which_something_failed_is_missed() -> None:
    found = [(None, "a"), (4.0, "b"), (nan, "c")]
    assert at_least("t", 3.0, found, "x") == at_most("t", 5.0, found, "x") == ("t", False, "failed (c)")


@pytest.mark.parametrize("is_backward", [False, True])
def test_what_a_call_reads_is_part_of_its_inputs(is_backward: bool) -> None:
    """Every other block of the hidden states, the norm's weight and the matrix; gradients are no inputs."""
    hidden, _, rows, norm, matrix = query_projection.inputs(4, 768, torch.device("meta"))
    read = query_projection.reads(4, 768)
    assert read == hidden[: rows.numel()].nbytes + norm.nbytes + matrix.nbytes < hidden.nbytes + matrix.nbytes
    geometry = assemble_embeddings.Geometry()
    assert geometry.reads == 4 * 2048 * 4096 * 2
    assert geometry.reads < geometry.work(is_backward).bytes
