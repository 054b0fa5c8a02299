"""A check tied to a part, and what becomes of many of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dreamkit.testing.check import Check
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.outcomes import Outcome, Result
from dreamkit.testing.subject import Subject


@dataclass(frozen=True)
class Bound:
    """A check and the part it is to be tried on. Calling it is the test.

    `expected` is why it should fail, or None. `repeat` is the command that tries it again; under pytest, where there is
    none, that of the test.
    """

    check: Check
    subject: Subject
    expected: str | None = None
    quick: bool = False
    repeat: str = ""

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
        self.test(self.repeat or (test and f'pytest "{test}"'))

    def skips(self) -> str | None:
        """Why the part need not pass; None where it must."""
        with one_thread():
            _ = self.subject.part  # a part that cannot be built passes nothing
            reason = self.check.skips(self.subject)
        if reason is not None and self.expected is not None:
            raise KitError(
                f"{self.name} is expected to fail ({self.expected}), but is not run, because {reason}; "
                "take it out of expected_failures"
            )
        return reason

    def test(self, repeat: str) -> None:
        """Tries the part; `repeat` is the command that does it again, in words."""
        __tracebackhide__ = True
        with one_thread():
            self.check.test(self.subject, quick=self.quick, repeat=repeat)


def outcomes(bound: Iterable[Bound]) -> Iterator[Outcome]:
    """What becomes of each, as it is tried."""
    for each in bound:
        start = time.perf_counter()
        result, message = _outcome(each)
        yield Outcome(each.name, result, message, time.perf_counter() - start)


def _outcome(bound: Bound) -> tuple[Result, str]:
    try:
        if (reason := bound.skips()) is not None:
            return "skipped", reason
        bound.test(bound.repeat)
    except ContractError as error:
        return ("failed", str(error)) if bound.expected is None else ("expected", bound.expected)
    except KitError as error:
        return "failed", str(error)
    except Exception as error:  # one part never ends the report of the others
        return "failed", f"{bound.name} could not be tried: {type(error).__name__}: {error}"
    if bound.expected is not None:
        return "failed", f"it passes, but was expected to fail: {bound.expected}"
    return "passed", ""


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread: more are no use to a miniature, and two busy processes wait long for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
