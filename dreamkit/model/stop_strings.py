"""Stop strings in a growing text."""

from __future__ import annotations

from collections.abc import Sequence


def stop_start(text: str, stops: Sequence[str], searched: int) -> int | None:
    """Return where the stop string starts that a reader of `text` meets first, or None if there is none.

    That is the one that ends first and, of those, the longest. So it does not depend on how tokens divide the text.
    The first `searched` characters are known to have none.
    """
    starts = ((text.find(stop, max(0, searched + 1 - len(stop))), len(stop)) for stop in stops)
    found = [(start + length, start) for start, length in starts if start >= 0]
    return min(found)[1] if found else None


def begun_length(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that is an unfinished beginning of a stop string."""
    return max(
        (
            length
            for stop in stops
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        ),
        default=0,
    )
