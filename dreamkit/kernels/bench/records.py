"""What a benchmark finds, as plain records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from dreamkit.kernels.bench.figures import Figure

OUT_OF_TIME: Final = "not measured: out of time"
FLOOR: Final = "floor"  # the candidate that is the roofline

Unit = Literal["s", "B", "/s", "B/s", "FLOP/s"]


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


class Verdict(NamedTuple):
    """Whether a target is met, and by what; `met` is None where what it asks for was not measured."""

    target: str
    met: bool | None
    found: str


class Records(list[Record]):
    """Records in the order they came."""

    def figure(self, table: str, case: str, candidate: str, unit: Unit = "s") -> Figure | None:
        """What was measured, if it was."""
        for record in self:
            if (record.table, record.case, record.candidate, record.unit) == (table, case, candidate, unit):
                return record.figure
        return None


Targets = Callable[[Records], Iterable[Verdict]]


Cases = Sequence[tuple[float | None, str]]  # what was found in each case, if it was measured


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
