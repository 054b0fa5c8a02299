"""Checks of single config values. Each error is the start of a message: expected, then actual."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dreamkit import count

_TYPES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "list",
    tuple: "list",
    Mapping: "section",
}


def describe_value(value: Any) -> str:
    """Return a value and its type in a recipe's terms, such as "'three' (string)", "true (boolean)" or "null"."""
    if value is None:
        return "null"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    name = next((name for kind, name in _TYPES.items() if isinstance(value, kind)), type(value).__name__)
    return f"{shown} ({name})"


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


def numbers_error(value: Any, length: Any, *, positive: bool) -> str | None:
    """Return why `value` is not a list of `length` finite numbers, above 0 if `positive`, or None if it is."""
    if not isinstance(value, list | tuple):
        return f"expected a list of {count(length, 'number')}, got {describe_value(value)}"
    if len(value) != length:
        return f"expected {count(length, 'number')}, one for each latent channel, got {len(value)}"
    return next((error for item in value if (error := number_error(item, positive=positive))), None)
