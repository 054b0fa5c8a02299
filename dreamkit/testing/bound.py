"""A check bound to a part or a data set, and the outcomes of many of them."""

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
FULL_TRACE_HINT = "pytest --full-trace shows the whole traceback"
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class BoundCheck:
    """A check and the part or data set to try it on. Calling it is the test.

    `expected` is the reason for an expected failure, or None. `repeat` is the command that repeats the check; if it is
    empty, pytest's command is used under pytest. `reported` maps the mistakes that checks of this part have reported
    to the first check that did.
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
        """Run the check as a pytest test.

        Raises:
            ContractError: the part breaks this contract.
            KitError: the part cannot be built, or a failure is expected of a check that does not run.
        """
        __tracebackhide__ = True
        import pytest

        try:
            if (reason := self.skips()) is not None:
                pytest.skip(reason)
            self.test()
        except (ContractError, KitError) as error:
            test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
            repeat = self.repeat or (f'pytest "{test}"' if test else "")
            fail(error, self.report(error, repeat, FULL_TRACE_HINT))

    def skips(self) -> str | None:
        """Return why the part need not pass, or None if it must.

        Raises:
            KitError: the part cannot be built, or a failure is expected of a check that does not run.
        """
        with one_thread(), self.subject.surroundings():
            _ = self.subject.part  # a part that cannot be built passes nothing
            reason = self.check.skips(self.subject)
        if reason is not None and self.expected is not None:
            raise KitError(
                f"expected a failure of {self.name} ({self.expected}), but the check does not run: {reason}; "
                "remove it from expected_failures"
            )
        return reason

    def test(self) -> None:
        """Try the part."""
        with one_thread(), self.subject.surroundings():
            self.check.test(self.subject, quick=self.quick)

    def expects(self, error: ContractError | KitError) -> bool:
        """Return True if `error` is the expected failure. A part that cannot be built is never expected."""
        return self.expected is not None and isinstance(error, ContractError)

    def report(self, error: ContractError | KitError, repeat: str, *more: str) -> str:
        """Return the message of an error, or one line if another check of the part has reported it.

        The message begins with the line of the author's file that raised the error, or of the part's definition.
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


def outcomes(checks: Iterable[BoundCheck]) -> Iterator[Outcome]:
    """Run each check and yield its outcome."""
    for check in checks:
        start = time.perf_counter()
        result, message = _outcome(check)
        yield Outcome(check.name, result, message, time.perf_counter() - start)


def _outcome(check: BoundCheck) -> tuple[Result, str]:
    try:
        if (reason := check.skips()) is not None:
            return "skipped", reason
        check.test()
    except (ContractError, KitError) as error:
        if check.expects(error):
            return "expected", check.expected or ""
        return "failed", check.report(error, check.repeat)
    except Exception as error:  # an error of the kit must not end the report of the other checks
        return "failed", f"{check.name} could not run: {type(error).__name__}: {error}"
    if check.expected is not None:
        return "failed", f"expected a failure ({check.expected}), but the check passes"
    return "passed", ""


def fail(error: ContractError | KitError, message: str) -> NoReturn:
    """Fail a pytest test with an error of the same class, of which pytest shows only `message`.

    With --full-trace, pytest also shows the traceback of the error's cause.
    """
    __tracebackhide__ = True
    shown = _without_traceback(type(error))(message)
    raise shown.with_traceback((error.__cause__ or error).__traceback__) from None


def _without_traceback(cls: Any) -> Any:
    """Return a subclass of `cls` that pytest treats like `pytest.fail(message, pytrace=False)`."""
    import pytest

    own = {"pytrace": False, "msg": property(cls.__str__), "__str__": cls.__str__}
    # pytest's summary has 80 columns and prints the module of every class that is not a builtin
    return type(cls.__name__, (cls, pytest.fail.Exception), {**own, "__module__": "builtins"})


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: a tiny part gains nothing from more, and busy processes would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
