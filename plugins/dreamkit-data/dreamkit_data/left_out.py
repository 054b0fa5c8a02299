"""Samples that a data set leaves out when it is indexed: how many, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamkit import DocumentError, Location, Url, count, printable


class LeftOut:
    """The numbers of samples that are left out of a file by their reasons, with the first sample of each."""

    def __init__(self) -> None:
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], str] = {}

    def add(self, reason: str, name: str, noun: str = "sample") -> None:
        """Count a sample, or something else that `noun` names; "3 samples" and `reason` are a sentence."""
        self._numbers[noun, reason] += 1
        self._first.setdefault((noun, reason), name)

    def facts(self) -> dict[str, Any]:
        """Return the numbers and names as facts of an index."""
        return {"left_out": [[*key, number, self._first[key]] for key, number in self._numbers.items()]}


def left_out_lines(facts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each reason for which samples of files with these `facts` are left out."""
    numbers: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for each in facts:
        for noun, reason, number, name in each["left_out"]:
            numbers[noun, reason] += number
            first.setdefault((noun, reason), name)
    return [
        f"left out: {count(f'{number:,}', key[0])} {key[1]}, such as {printable(first[key])}"
        for key, number in numbers.most_common()
    ]


def named_lines(paths: Location | Sequence[Location], lines: Iterable[str]) -> list[str]:
    """Return lines about the data set at `paths`, each with its name."""
    return [f"{paths_name(paths)}: {line}" for line in lines]


def empty_error(paths: Location | Sequence[Location], expected: str, lines: Iterable[str]) -> DocumentError:
    """Return the error about a data set at `paths` without a single one of what is `expected`, with the reasons."""
    return DocumentError("; ".join([f"{paths_name(paths)}: no {expected}", *lines]))


def paths_name(paths: Location | Sequence[Location]) -> str:
    """Return the name of a data set at `paths` for messages."""
    if isinstance(paths, Path | Url):
        return printable(paths)
    return printable(paths[0]) + (f" and {count(len(paths) - 1, 'other')}" if len(paths) > 1 else "")
