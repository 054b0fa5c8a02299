"""A check: a named property of a part, the inputs hypothesis makes for it, and the run that tells what is broken."""

from __future__ import annotations

import inspect
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, TypeAlias

from hypothesis import HealthCheck, Phase, Verbosity, given, settings, strategies as st
from hypothesis.errors import Flaky

from dreamkit.testing.expect import ContractError
from dreamkit.testing.subject import Case, Subject

Draw: TypeAlias = "st.SearchStrategy[Any] | Callable[[Any], st.SearchStrategy[Any]]"
Gate: TypeAlias = Callable[[Any], str | None]

EXAMPLES, QUICK_EXAMPLES = 15, 2  # inputs of a check, and in a quick run
LONGEST = 600  # characters of an error that the part raises: torch may name every tensor of a state dict
FLAKY = ", but not again on the same input: the part is not deterministic"

# Every check of rows takes two or more; one row is a check of its own, and a row beside others another.
cases = st.builds(Case, rows=st.integers(2, 4), length=st.integers(2, 7), seed=st.integers(0, 999))

CHECKS: list[Check] = []


@dataclass(frozen=True)
class Check:
    """One property. `kinds` are those of the parts that must have it, `run(subject, **inputs)` fails where one has not.

    `unless` gives the reason why a subject's part need not have it, in terms of what the part says of itself, or None.
    """

    name: str
    kinds: tuple[str, ...]
    run: Callable[..., None]
    inputs: Mapping[str, Draw] = field(default_factory=dict)
    unless: Gate | None = None

    @property
    def holds(self) -> str:
        """What must hold: the first paragraph of its docstring."""
        return inspect.getdoc(self.run).split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr]

    @property
    def rationale(self) -> str:
        """What a user is spared by it: the second paragraph."""
        return inspect.getdoc(self.run).split("\n\n")[1].replace("\n", " ")  # type: ignore[union-attr]

    def skips(self, subject: Subject) -> str | None:
        """Why the part need not pass; None where it must."""
        if self.unless is None:
            return None
        try:
            return self.unless(subject)
        except KeyboardInterrupt:
            raise
        except BaseException:  # what is wrong with the part, the check itself will say
            return None

    def test(self, subject: Subject, *, quick: bool = False) -> None:
        """Tries the part on inputs that hypothesis makes.

        Raises:
            ContractError: with what was found and what should be, the call, and the smallest failing input. Its
                cause is the error that the check or the part raised.
        """
        last: dict[str, Any] = {}
        try:
            self._hold(subject, last, quick)
        except Exception as error:
            subject.renew()
            flaky = isinstance(error, Flaky)
            # the first of what hypothesis then gathers is what was seen
            first = error.exceptions[0] if flaky and isinstance(error, BaseExceptionGroup) else error
            problem = _said(first) + (FLAKY if flaky else "")
            raise ContractError(problem, *_circumstances(subject.doing, last)) from first

    def _hold(self, subject: Subject, last: dict[str, Any], quick: bool) -> None:
        """Runs the check on inputs that hypothesis makes; `last` becomes those that failed, as small as can be."""
        subject.doing = ""
        draws = {
            name: draw if isinstance(draw, st.SearchStrategy) else draw(subject)
            for name, draw in self.inputs.items()
        }

        # no database, and the same inputs every time: a failure repeats anywhere
        @settings(
            max_examples=(QUICK_EXAMPLES if quick else EXAMPLES) if draws else 1,
            derandomize=True,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.fixed_dictionaries(draws))
        def once(inputs: dict[str, Any]) -> None:
            last.clear()
            last.update(inputs)
            subject.doing = ""
            with staying():
                self.run(subject, **inputs)

        once()


def check(*kinds: str, unless: Gate | None = None, **inputs: Draw) -> Callable[[Callable[..., None]], Check]:
    """Makes a check of a function: `kinds` of parts, and a strategy for each argument behind the subject."""

    def register(function: Callable[..., None]) -> Check:
        made = Check(function.__name__, kinds, function, inputs, unless)
        CHECKS.append(made)
        return made

    return register


def _said(error: BaseException) -> str:
    if isinstance(error, ContractError):
        return str(error)
    return shorten(f"{type(error).__name__}: {str(error) or 'no reason given'}", LONGEST, placeholder=" ...")


def _circumstances(doing: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the call that failed, and its inputs."""
    if doing:
        yield f"during {doing}"
    if inputs:
        yield f"smallest failing input: {', '.join(f'{k}={v!r}' for k, v in inputs.items())}"


@contextmanager
def staying() -> Iterator[None]:
    """Makes a failure of leaving: by sys.exit, and by what tells a test runner to skip, which no check may be."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, unittest.SkipTest):
            raise
        raise ContractError(
            f"the part left by {type(error).__name__}: {error}, but should pass this check or fail it"
        ) from error
