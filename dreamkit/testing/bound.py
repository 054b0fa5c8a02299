"""A check tied to a part, and what becomes of many of them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import torch

from dreamkit.testing.check import Check
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.locating import defined_at, raised_at
from dreamkit.testing.outcomes import Outcome, Result
from dreamkit.testing.subject import Subject

Mistake: TypeAlias = tuple[str | None, str]  # a place, and an error without its numbers
IN_FULL = "pytest --full-trace shows the whole traceback"
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Bound:
    """A check and the part it is to be tried on. Calling it is the test.

    `expected` is why it should fail, or None. `repeat` is the command that tries it again; under pytest, where there is
    none, that of the test. `reported` holds the mistakes that checks of the same part have reported, each with the
    first such check.
    """

    check: Check
    subject: Subject
    expected: str | None = None
    quick: bool = False
    repeat: str = ""
    reported: dict[Mistake, str] = field(default_factory=dict)

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
        import pytest

        try:
            if (reason := self.skips()) is not None:
                pytest.skip(reason)
            self.test()
        except (ContractError, KitError) as error:
            test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
            fail(error, self.report(error, self.repeat or (f'pytest "{test}"' if test else ""), IN_FULL))

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

    def test(self) -> None:
        """Tries the part."""
        with one_thread():
            self.check.test(self.subject, quick=self.quick)

    def expects(self, error: ContractError | KitError) -> bool:
        """Return True if `error` is the failure that was expected. A part that cannot be built never is."""
        return self.expected is not None and isinstance(error, ContractError)

    def report(self, error: ContractError | KitError, repeat: str, *more: str) -> str:
        """Return the message of an error; one line if another check of the part has reported it.

        It begins with the line where the error arose in the author's files, or with that of the part's definition.
        """
        problem, *details = error.args
        definition = self.subject.definition
        place = raised_at(error, definition.__module__) or defined_at(definition)
        if not self.expects(error):
            first = self.reported.setdefault((place, NUMBER.sub("", problem)), self.name)
            if first != self.name:
                return f"the same error as in `{first}`{f', at {place}' if place else ''}"
        head = f"{place}: {problem}" if place else problem
        again = [f"repeat it with: {repeat}"] if repeat else []
        return "\n  ".join([head, f"{self.name}: {self.check.holds}", *details, *again, *more])


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
        bound.test()
    except (ContractError, KitError) as error:
        if bound.expects(error):
            return "expected", bound.expected or ""
        return "failed", bound.report(error, bound.repeat)
    except Exception as error:  # one part never ends the report of the others
        return "failed", f"{bound.name} could not be tried: {type(error).__name__}: {error}"
    if bound.expected is not None:
        return "failed", f"it passes, but was expected to fail: {bound.expected}"
    return "passed", ""


def fail(error: ContractError | KitError, message: str) -> NoReturn:
    """Fail a test of pytest by an error of the same class, of which pytest shows `message` and nothing else.

    With --full-trace, pytest shows the traceback of the error's cause too.
    """
    __tracebackhide__ = True
    shown = _without_traceback(type(error))(message)
    raise shown.with_traceback((error.__cause__ or error).__traceback__) from None


def _without_traceback(cls: Any) -> Any:
    """Return a class of the same errors that pytest treats like `pytest.fail(message, pytrace=False)`."""
    import pytest

    own = {"pytrace": False, "msg": property(cls.__str__), "__str__": cls.__str__}
    # pytest's summary has 80 columns, and names the module of a class that is not built in
    return type(cls.__name__, (cls, pytest.fail.Exception), {**own, "__module__": "builtins"})


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread: more are no use to a miniature, and two busy processes wait long for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
