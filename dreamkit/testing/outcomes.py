"""What became of each check, and the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from textwrap import indent
from typing import Final, Literal, TypeAlias

Result: TypeAlias = Literal["passed", "failed", "expected", "skipped"]

MARKS: Final[dict[Result, str]] = {"passed": "ok", "failed": "FAILED", "expected": "fails", "skipped": "skip"}


@dataclass(frozen=True)
class Outcome:
    """A check's result: `expected` is a failure that was. `message` says what is wrong, or why it was not run."""

    check: str
    result: Result
    message: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        line = f"{MARKS[self.result]:<6} {self.check:<28} {self.seconds:5.1f} s"
        if "\n" in self.message:
            return f"{line}\n{indent(self.message, '  ')}"
        return f"{line}  {self.message}" if self.message else line


@dataclass
class Report:
    """The outcomes of one part's checks. `ok` where none failed and one passed at least; text as `str(report)`."""

    title: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        counts = counted(self.outcomes)
        return not counts["failed"] and bool(counts["passed"])

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.result == "failed")

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self.outcomes), summary(self.outcomes)])


def counted(outcomes: Iterable[Outcome]) -> Counter[Result]:
    return Counter(outcome.result for outcome in outcomes)


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many checks ran, and how they ended."""
    counts = counted(outcomes)
    ran = counts.total() - counts["skipped"]
    ends = f"{counts['passed']} passed, {counts['failed']} failed, {counts['expected']} failed as expected"
    return f"{ran} check{'s' if ran != 1 else ''} ran: {ends}; {counts['skipped']} skipped"
