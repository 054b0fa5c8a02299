"""Sizes as text: `80GiB`, `24GB`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from dreamkit.errors import DreamkitError, excerpt

_UNITS: Final[dict[str, int]] = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGTP", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", start=1)},
}
_BYTES_BY_UNIT: Final = {unit.upper(): count for unit, count in _UNITS.items()}


def parse_bytes(text: str) -> int:
    """Return the number of bytes in a text such as `80GiB`; `GB` are powers of 1000, `GiB` of 1024.

    Raises:
        DreamkitError: no number, no unit, or less than a byte.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)\s*", text)
    count = int(float(match[1]) * _BYTES_BY_UNIT.get(match[2].upper(), 0)) if match else 0
    if not count:
        units = ", ".join(_UNITS)
        raise DreamkitError(
            f"expected an amount of memory, got '{excerpt(text)}'; write a number and one of {units}, such as 80GiB"
        )
    return count


def format_bytes(count: float) -> str:
    """Return a number of bytes in the largest binary unit of which it is at least 1."""
    return _format(count, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"])


def format_count(count: float) -> str:
    """Return a number in powers of 1000, ready for a unit: `6.74 G`."""
    return _format(count, 1000, ["", *"kMGTPE"])


def _format(count: float, base: int, units: Sequence[str]) -> str:
    power = max((power for power in range(len(units)) if count >= base**power), default=0)
    return f"{count / base**power:.{2 if power else 0}f} {units[power]}"
