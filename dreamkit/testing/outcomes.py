"""The outcome of each check, and the report of a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from textwrap import indent
from typing import Final, Literal, TypeAlias

from dreamkit.errors import count

Result: TypeAlias = Literal["passed", "failed", "expected", "skipped"]

MARKS: Final[dict[Result, str]] = {"passed": "ok", "failed": "FAILED", "expected": "fails", "skipped": "skip"}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    `result` "expected" is a failure that the part's author announced. `message` is the error, or the reason for a
    skipped check or an expected failure.
    """

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
    """The outcomes of one part's checks. `str(report)` is the text to show."""

    title: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if no check failed and at least one passed."""
        results = {outcome.result for outcome in self.outcomes}
        return "passed" in results and "failed" not in results

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes of the checks that failed unexpectedly."""
        return tuple(outcome for outcome in self.outcomes if outcome.result == "failed")

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self.outcomes), summary(self.outcomes)])


def summary(outcomes: Iterable[Outcome]) -> str:
    """Return a line with the counts: `3 checks ran: 2 passed, 1 failed; 0 skipped`."""
    counts = Counter(outcome.result for outcome in outcomes)
    ran = counts.total() - counts["skipped"]
    ends = f"{counts['passed']} passed, {counts['failed']} failed"
    if counts["expected"]:
        ends += f", {counts['expected']} failed as expected"
    return f"{count(ran, 'check')} ran: {ends}; {counts['skipped']} skipped"
