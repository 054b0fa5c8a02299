"""Filters on numbers in the metadata of samples."""

import pytest
from hypothesis import given, strategies as st

from dreamkit_data.member_records import Bounds, filtered_reason, parsed_record

numbers = st.floats(allow_nan=False) | st.integers()


@given(numbers, numbers.map(float), numbers.map(float))
def test_a_number_passes_if_it_is_within_the_bounds(number: float, one: float, other: float) -> None:
    least, most = sorted((one, other))
    passes = filtered_reason({"width": number}, {"width": Bounds(least, most)}) is None
    assert passes == (least <= number <= most)


@pytest.mark.parametrize("value", [None, "300", True, [300], float("nan"), "absent"])
def test_what_is_no_number_passes_no_filter(value: object) -> None:
    record = {} if value == "absent" else {"width": value}
    assert "without a number as 'width'" in str(filtered_reason(record, {"width": Bounds(least=0)}))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 9999 + b"}"]
)
def test_other_values_than_an_object_are_no_record(data: bytes) -> None:
    assert parsed_record(data) is None


def test_a_number_beyond_floats_is_compared() -> None:
    record = parsed_record(b'{"width": 1' + b"0" * 400 + b"}")
    assert record is not None and filtered_reason(record, {"width": Bounds(least=9)}) is None
