"""A check tied to a part, and what becomes of many of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dreamkit.testing.check import Check
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.report import Outcome, Result
from dreamkit.testing.subject import Subject


@dataclass(frozen=True)
class Bound:
    """A check and the part it is to be tried on. Calling it is the test; `expected` is why it should fail, or None."""

    check: Check
    subject: Subject
    expected: str | None = None
    quick: bool = False

    @property
    def name(self) -> str:
        return self.check.name

    def __call__(self) -> None:
        """The test, for pytest.

        Raises:
            ContractError: the part does not keep this contract.
            KitError: it cannot be built, or a failure was expected of a check that need not be passed.
        """
        __tracebackhide__ = True
        if (reason := self.skips()) is not None:
            import pytest

            pytest.skip(reason)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        self.test(f'pytest "{test}"' if test else "")

    def skips(self) -> str | None:
        """Why the part need not pass; None where it must."""
        _ = self.subject.part  # a part that cannot be built passes nothing
        reason = self.check.skips(self.subject)
        if reason is not None and self.expected is not None:
            raise KitError(
                f"{self.name} is expected to fail ({self.expected}), but is not run, because {reason}; "
                "take it out of expected_failures"
            )
        return reason

    def test(self, repeat: str) -> None:
        """Tries the part; `repeat` is the command that does it again."""
        __tracebackhide__ = True
        self.check.test(self.subject, quick=self.quick, repeat=repeat)


def outcomes(bound: Iterable[Bound], repeat: Callable[[Bound], str]) -> Iterator[Outcome]:
    """What becomes of each, as it is tried; `repeat` gives the command that tries one again."""
    for each in bound:
        start = time.perf_counter()
        result, message = _outcome(each, repeat(each))
        yield Outcome(each.name, result, message, time.perf_counter() - start)


def _outcome(bound: Bound, repeat: str) -> tuple[Result, str]:
    try:
        if (reason := bound.skips()) is not None:
            return "skipped", reason
        bound.test(repeat)
    except ContractError as error:
        return ("failed", str(error)) if bound.expected is None else ("expected", bound.expected)
    except KitError as error:
        return "failed", str(error)
    if bound.expected is not None:
        return "failed", f"it passes, but was expected to fail: {bound.expected}"
    return "passed", ""
