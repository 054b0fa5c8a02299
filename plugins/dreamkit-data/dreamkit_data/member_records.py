"""The metadata in a sample's `.json`, and filters on its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamkit import ConfigError, did_you_mean, excerpt, printable


@dataclass(frozen=True)
class Bounds:
    """A filter on a number: samples with less than `least` or more than `most` are left out."""

    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        if self.least is None and self.most is None:
            raise ConfigError({"": "expected least, most or both, got none"})
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ConfigError({"least": f"expected no more than 'most' ({self.most}), got {self.least}"})

    def __str__(self) -> str:
        bounds = (
            (f"least {self.least:g}" if self.least is not None else ""),
            (f"most {self.most:g}" if self.most is not None else ""),
        )
        return ", ".join(filter(None, bounds))

    def includes(self, number: float) -> bool:
        """Return True if `number` is within the bounds."""
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)


def parsed_record(data: bytes) -> dict[str, Any] | None:
    """Return the object in JSON, or None for anything else."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def missing_key(record: Mapping[str, Any], key: str) -> str:
    """Return the error about a record without a key, with the nearest of its keys."""
    names = [excerpt(each) for each in list(record)[:100]]
    return f"missing '{key}'" + (f"; {did_you_mean(key, names)}" if names else "")


def filtered_reason(record: Mapping[str, Any], filters: Mapping[str, Bounds]) -> str | None:
    """Return why filters leave out the sample of a record, or None."""
    for key, bounds in filters.items():
        number = record.get(key)
        if isinstance(number, bool) or not isinstance(number, int | float) or number != number:  # NaN
            return f"without a number as '{printable(key)}', which has a filter"
        if not bounds.includes(number):
            return f"by the filter of '{printable(key)}' ({bounds})"
    return None
