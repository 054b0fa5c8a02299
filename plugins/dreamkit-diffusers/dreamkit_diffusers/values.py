"""Checks of single config values. Each error is the start of a message: expected, then actual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from dreamkit import count, describe_value

MOST_ITEMS: Final = 8  # of a list in a message


def difference(expected: Any, value: Any) -> str:
    """Return the start of a message about two different values; of two lists it shows the items."""
    if isinstance(expected, list | tuple) and isinstance(value, list | tuple):
        return f"expected {_items(expected)}, got {_items(value)}"
    return f"expected {describe_value(expected)}, got {describe_value(value)}"


def _items(values: Sequence[Any]) -> str:
    shown = [describe_value(value).partition(" (")[0] for value in values[:MOST_ITEMS]]
    return f"[{', '.join([*shown, '...'] if len(values) > MOST_ITEMS else shown)}]"


def is_count(value: Any) -> bool:
    """Return True if `value` is an integer of at least 1."""
    return count_error(value) is None


def count_error(value: Any, at_most: int | None = None) -> str | None:
    """Return why `value` is not an integer from 1 to `at_most`, or None if it is."""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"expected an integer, got {describe_value(value)}"
    if value < 1:
        return f"expected at least 1, got {value}"
    if at_most is not None and value > at_most:
        return f"expected at most {at_most}, got {value}"
    return None


def number_error(value: Any, *, positive: bool = True) -> str | None:
    """Return why `value` is not a finite number, above 0 if `positive`, or None if it is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"expected a finite number, got {describe_value(value)}"
    if positive and value <= 0:
        return f"expected more than 0, got {value}"
    return None


def numbers_error(value: Any, length: Any, each: str, *, positive: bool) -> str | None:
    """Return why `value` is not a list of `length` finite numbers, one for `each`, above 0 if `positive`; else None."""
    if not isinstance(value, list | tuple):
        return f"expected a list of {count(length, 'number')}, got {describe_value(value)}"
    if len(value) != length:
        return f"expected {count(length, 'number')}, one for each {each}, got {len(value)}"
    return next((error for item in value if (error := number_error(item, positive=positive))), None)
