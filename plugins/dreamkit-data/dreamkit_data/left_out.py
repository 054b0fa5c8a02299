"""Samples that a data set leaves out when it is indexed: how many, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamkit import count, printable


class LeftOut:
    """The numbers of samples that are left out of a file by their reasons, with the first sample of each."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        """Count a sample; `reason` ends a sentence such as "3 samples ..."."""
        self._numbers[reason] += 1
        self._first.setdefault(reason, name)

    def facts(self) -> dict[str, Any]:
        """Return the numbers and names as facts of an index."""
        return {"left_out": dict(self._numbers), "first": self._first}


def left_out_notes(facts: Iterable[Mapping[str, Any]], paths: Path | Sequence[Path], noun: str) -> list[str]:
    """Return a line for each reason for which samples of a data set at `paths` are left out.

    `facts` are those of its files, and `noun` names a sample.
    """
    numbers: Counter[str] = Counter()
    first: dict[str, str] = {}
    for each in facts:
        numbers.update(each["left_out"])
        first = {**each["first"], **first}
    return [
        f"{paths_name(paths)}: left out: {count(f'{number:,}', noun)} {reason}, such as {printable(first[reason])}"
        for reason, number in numbers.most_common()
    ]


def paths_name(paths: Path | Sequence[Path]) -> str:
    """Return the name of a data set at `paths` for messages."""
    if isinstance(paths, Path):
        return printable(paths)
    return printable(paths[0]) + (f" and {count(len(paths) - 1, 'other')}" if len(paths) > 1 else "")
