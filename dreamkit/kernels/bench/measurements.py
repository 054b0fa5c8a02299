"""What a benchmark finds, as plain records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Final, Literal, NamedTuple

from dreamkit.kernels.bench.figures import Figure, ratio

OUT_OF_TIME: Final = "not measured: out of time"
FLOOR: Final = "floor"  # the candidate that is the roofline

Unit = Literal["s", "B", "/s", "B/s", "FLOP/s"]


class Cell(NamedTuple):
    """A cell of a table."""

    table: str
    case: str
    candidate: str


@dataclass(frozen=True)
class Record:
    """One cell of one table: what was measured of a candidate in a case, or why it was not.

    `failed` says that it should have been, and an error came.
    """

    table: str
    case: str
    candidate: str
    unit: Unit = "s"
    figure: Figure | None = None
    problem: str = ""
    failed: bool = False

    @property
    def cell(self) -> Cell:
        return Cell(self.table, self.case, self.candidate)


class Verdict(NamedTuple):
    """Whether a target is met, and by what; `met` is None where what it asks for was not measured."""

    target: str
    met: bool | None
    found: str


class Records(list[Record]):
    """Records in the order they came."""

    @property
    def cells(self) -> set[Cell]:
        return {record.cell for record in self}

    def figure(self, table: str, case: str, candidate: str, unit: Unit = "s") -> Figure | None:
        """What was measured, if it was."""
        for record in self:
            if (record.cell, record.unit) == ((table, case, candidate), unit):
                return record.figure
        return None

    def failed(self, table: str, case: str, candidate: str) -> bool:
        """Whether an error came in its place."""
        return any(record.failed and record.cell == (table, case, candidate) for record in self)

    def value(self, table: str, case: str, candidate: str, unit: Unit = "s") -> float | None:
        """What was measured, if it was; NaN where it failed."""
        figure = self.figure(table, case, candidate, unit)
        if figure is None:
            return nan if self.failed(table, case, candidate) else None
        return figure.value

    def speedup(self, table: str, case: str, other: str, own: str) -> float | None:
        """How many times as fast as `other` `own` is, if both were measured; NaN where `own` failed."""
        base, figure = self.figure(table, case, other), self.figure(table, case, own)
        if figure is None:
            return self.value(table, case, own)
        return None if base is None else ratio(base, figure)


Targets = Callable[[Records], Iterable[Verdict]]


Cases = Sequence[
    tuple[float | None, str]
]  # what was found in each case, if it was measured; NaN where it failed


def at_least(target: str, wanted: float, found: Cases, unit: str) -> Verdict:
    """Whether the least of what was found is as much as is wanted."""
    return _judged(target, found, min, lambda worst: worst / wanted - 1, unit, "short")


def at_most(target: str, wanted: float, found: Cases, unit: str) -> Verdict:
    """Whether the most of what was found is no more than is wanted."""
    return _judged(target, found, max, lambda worst: 1 - worst / wanted, unit, "too much")


def _judged(
    target: str,
    found: Cases,
    worst_of: Callable[[list[tuple[float, str]]], tuple[float, str]],
    margin: Callable[[float], float],
    unit: str,
    lacking: str,
) -> Verdict:
    measured = [(value, case) for value, case in found if value is not None]
    failed = [case for value, case in measured if isnan(value)]
    if failed:
        return Verdict(target, False, f"failed ({failed[0]})")
    if not measured:
        return Verdict(target, None, "not measured")
    worst, case = worst_of(measured)
    lack = margin(worst)
    said = f"{worst:.2f} {unit} ({case})" + (f", {-lack:.0%} {lacking}" if lack < 0 else "")
    missing = len(found) - len(measured)
    if missing:
        said += f"; {missing} of {len(found)} not measured"
    return Verdict(target, False if lack < 0 else None if missing else True, said)


def no_targets(records: Records) -> Iterator[Verdict]:
    """Of a section that only tells."""
    return iter(())
