"""Times in words. This module loads no torch."""

from __future__ import annotations

from datetime import timedelta


def duration(time: timedelta) -> str:
    """Return a time in its two largest units, such as "2 h 5 min"."""
    seconds = max(0, round(time.total_seconds()))
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size:,} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{seconds} s"
