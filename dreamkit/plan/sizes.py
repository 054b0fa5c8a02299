"""Sizes in words: `80GiB`, `24GB`."""

from __future__ import annotations

import re
from typing import Final

from dreamkit.errors import DreamkitError

_UNITS: Final[dict[str, int]] = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGTP", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", start=1)},
}
_SPELLED: Final = {unit.upper(): unit for unit in _UNITS}


def parse_bytes(text: str) -> int:
    """The bytes of a number with a unit; `GB` are thousands of thousands, `GiB` powers of 1024.

    Raises:
        DreamkitError: no number, no unit, or nothing.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)\s*", text)
    unit = found and _SPELLED.get(found[2].upper())
    if not found or not unit or not (count := int(float(found[1]) * _UNITS[unit])):
        raise DreamkitError(
            f"'{text}' is no amount of memory; write a number and one of {', '.join(_UNITS)}, such as 80GiB"
        )
    return count


def in_bytes(count: float) -> str:
    """A number of bytes in the largest binary unit that leaves at least 1."""
    for power, letter in reversed([*enumerate("KMGTP", start=1)]):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {letter}iB"
    return f"{count:.0f} B"


def in_words(count: float) -> str:
    """A large number in thousands of thousands: 6.74 G."""
    for power, letter in reversed([*enumerate("kMGTPE", start=1)]):
        if count >= 1000**power:
            return f"{count / 1000**power:.2f} {letter}"
    return f"{count:.0f} "
