"""The contract kit's functions: for pytest, for a script, and the list of checks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dreamkit.errors import did_you_mean
from dreamkit.testing import checks as _all  # noqa: F401  importing them makes them
from dreamkit.testing.check import CHECKS, Check
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.report import Outcome, Report, Result
from dreamkit.testing.subject import Build, Subject
from dreamkit.testing.subjects import KINDS, miniature as miniature, subject_of

__all__ = ["Bound", "bind", "checks", "miniature", "parametrize", "verify"]

Test = TypeVar("Test", bound=Callable[..., Any])


def checks(kind: str) -> tuple[Check, ...]:
    """The checks of a kind of part: `vision_encoder`, `language_model`, `projector` or `image_decoder`.

    Raises:
        KitError: no such kind.
    """
    if kind not in KINDS:
        raise KitError(f"there is no kind '{kind}'; {did_you_mean(kind, KINDS)}")
    return tuple(check for check in CHECKS if kind in check.kinds)


@dataclass(frozen=True)
class Bound:
    """A check and the part it is to be tried on. Calling it is the test; `expected` is why it should fail, or None."""

    check: Check
    subject: Subject
    expected: str | None = None
    quick: bool = False

    def __call__(self, repeat: str | None = None) -> None:
        """Tries the part. `repeat` is the command that does it again; under pytest, the test's own is said.

        Raises:
            ContractError: the part does not keep this contract.
            KitError: it cannot be built, or a failure was expected of a check that need not be passed.
        """
        __tracebackhide__ = True
        if (reason := self.skips()) is not None:
            _skip(reason)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        self.check.test(self.subject, quick=self.quick, repeat=repeat or (test and f'pytest "{test}"'))

    def skips(self) -> str | None:
        """Why the part need not pass; None where it must."""
        _ = self.subject.part  # a part that cannot be built passes nothing
        reason = self.check.skips(self.subject)
        if reason is not None and self.expected is not None:
            raise KitError(
                f"{self.check.name} is expected to fail ({self.expected}), but is not run, because {reason}; "
                "take it out of expected_failures"
            )
        return reason


def bind(
    kind: str,
    build: Build,
    *,
    only: str | Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    quick: bool = False,
) -> list[Bound]:
    """The checks of a kind, each bound to the part that `build` makes. What is given is as in `verify`."""
    known = {check.name: check for check in checks(kind)}
    expected = dict(expected_failures or {})
    chosen = list(known) if only is None else [only] if isinstance(only, str) else list(only)
    for name in (*chosen, *expected):
        if name not in known:
            raise KitError(f"there is no check '{name}' of a {kind}; {did_you_mean(name, known)}")
    one = subject_of(kind, build)
    return [Bound(known[name], one, expected.get(name), quick) for name in chosen]


def parametrize(
    kind: str, build: Build, expected_failures: Mapping[str, str] | None = None, *, quick: bool = False
) -> Callable[[Test], Test]:
    """Makes a pytest test of one function with an argument `check`, which it calls: one test a check, by its name.

        @contracts.parametrize("projector", contracts.miniature(Pool))
        def test_contract(check):
            check()

    Expected failures are strict `xfail`s: one that passes is an error.

    Raises:
        KitError: an unknown kind, or an unknown name in `expected_failures`.
    """
    import pytest

    params = []
    for bound in bind(kind, build, expected_failures=expected_failures, quick=quick):
        marks = []
        if bound.expected is not None:
            marks = [pytest.mark.xfail(reason=bound.expected, raises=ContractError, strict=True)]
        params.append(pytest.param(bound, id=bound.check.name, marks=marks))
    return pytest.mark.parametrize("check", params)


def verify(
    kind: str,
    build: Build,
    *,
    only: str | Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    quick: bool = False,
) -> Report:
    """Tries a part on the checks of its kind, and reports what became of each.

    `build` makes a fresh, tiny, offline part on the CPU, with weights from torch's global generator. `only` names one
    check or several. `expected_failures` are reasons by the names of checks; one that passes counts as a failure.
    `quick` draws few inputs for each check, and ends within seconds.

    Raises:
        KitError: an unknown kind or an unknown name of a check.
    """
    bound = bind(kind, build, only=only, expected_failures=expected_failures, quick=quick)
    repeat = "contracts.verify({kind!r}, build, only={name!r})"
    report = Report(kind)
    report.outcomes += outcomes(bound, lambda name: repeat.format(kind=kind, name=name))
    return report


def outcomes(bound: Sequence[Bound], repeat: Callable[[str], str]) -> Iterator[Outcome]:
    """What becomes of each, as it is tried; `repeat(name)` is the command that tries one again."""
    for each in bound:
        start = time.perf_counter()
        result: Result = "passed"
        message = ""
        try:
            reason = each.skips()
            if reason is not None:
                yield Outcome(each.check.name, "skipped", reason)
                continue
            each.check.test(each.subject, quick=each.quick, repeat=repeat(each.check.name))
        except ContractError as error:
            result, message = "failed", str(error)
            if each.expected is not None:
                result, message = "expected", each.expected
        except KitError as error:
            result, message = "failed", str(error)
        else:
            if each.expected is not None:
                result, message = "failed", f"it passes, but was expected to fail: {each.expected}"
        yield Outcome(each.check.name, result, message, time.perf_counter() - start)


def _skip(reason: str) -> None:
    import pytest

    pytest.skip(reason)
