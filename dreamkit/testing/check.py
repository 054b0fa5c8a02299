"""A check: a named property, the inputs that hypothesis makes for it, and the report of a failure."""

from __future__ import annotations

import inspect
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, TypeAlias

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, strategies as st
from hypothesis.errors import Flaky

from dreamkit.earlier_names import EarlierName, warn_of
from dreamkit.testing.expect import ContractError
from dreamkit.testing.part_subject import Case
from dreamkit.testing.subject import Subject

Draw: TypeAlias = "st.SearchStrategy[Any] | Callable[[Any], st.SearchStrategy[Any]]"
SkipReason: TypeAlias = Callable[[Any], str | None]

EXAMPLES, QUICK_EXAMPLES = 15, 2  # inputs of a check, and of a check in a quick run
SEED = 0  # of the inputs
LONGEST = 600  # characters of an error that the part raises: torch may name every tensor of a state dict
FLAKY = ", but not again on the same input: the {noun} is not deterministic"

# At least two rows: one row is the business of `batch_of_one` alone.
cases = st.builds(Case, rows=st.integers(2, 4), length=st.integers(2, 7), seed=st.integers(0, 999))

CHECKS: list[Check] = []
EARLIER_CHECKS: Mapping[str, str] = {
    "sample_seed": "draw_seed",
    "sample_alone": "draw_alone",
    "sample_size": "draw_size",
    "outline_agrees": "meta_modules_agree",
}


def current_check(name: str) -> str:
    """Return the current name of a check, with a warning if `name` is an earlier one."""
    if name in EARLIER_CHECKS:
        warn_of(name, EARLIER_CHECKS[name])
    return EARLIER_CHECKS.get(name, name)


@dataclass(frozen=True)
class Check:
    """One property of a part or a data set.

    `kinds` are the kinds that must have it. `run(subject, **inputs)` raises if the subject has not. `inputs` are the
    strategies of its arguments. `unless(subject)` returns why the subject need not have it, from what it declares, or
    None.
    """

    name: str
    kinds: tuple[str, ...]
    run: Callable[..., None]
    inputs: Mapping[str, Draw] = field(default_factory=dict)
    unless: SkipReason | None = None

    protects = EarlierName("rationale")

    @property
    def holds(self) -> str:
        """The property: the first paragraph of the check's docstring."""
        return self._paragraphs[0]

    @property
    def rationale(self) -> str:
        """The reason for the check: the second paragraph of its docstring."""
        return self._paragraphs[1]

    @property
    def _paragraphs(self) -> list[str]:
        docstring = inspect.getdoc(self.run) or ""
        return [" ".join(paragraph.split()) for paragraph in docstring.split("\n\n")]

    def skips(self, subject: Subject) -> str | None:
        """Return why the part need not pass, or None if it must."""
        if self.unless is None:
            return None
        try:
            return self.unless(subject)
        except KeyboardInterrupt:
            raise
        except BaseException:  # the check itself then reports the error
            return None

    def test(self, subject: Subject, *, quick: bool = False) -> None:
        """Try the part on inputs that hypothesis makes.

        Raises:
            ContractError: with the expected and the actual value, the call, and the smallest failing input. Its
                cause is the error that the check or the part raised.
        """
        last: dict[str, Any] = {}
        try:
            self._try_inputs(subject, last, quick)
        except Exception as error:
            subject.renew()
            flaky = isinstance(error, Flaky)
            # hypothesis groups the errors of a flaky check; the first is the original failure
            first = error.exceptions[0] if flaky and isinstance(error, BaseExceptionGroup) else error
            lines = [_problem(first) + (FLAKY.format(noun=subject.noun) if flaky else "")]
            if subject.call_text:
                lines.append(f"during {subject.call_text}")
            if last:
                lines.append(f"smallest failing input: {', '.join(f'{k}={v!r}' for k, v in last.items())}")
            raise ContractError(*lines) from first

    def _try_inputs(self, subject: Subject, last: dict[str, Any], quick: bool) -> None:
        """Run the check on inputs that hypothesis makes; `last` ends as the smallest failing input."""
        subject.call_text = ""
        strategies = {
            name: draw if isinstance(draw, st.SearchStrategy) else draw(subject)
            for name, draw in self.inputs.items()
        }

        # with a fixed seed and without a database, a failure repeats anywhere
        @seed(SEED)
        @settings(
            max_examples=(QUICK_EXAMPLES if quick else EXAMPLES) if strategies else 1,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.fixed_dictionaries(strategies))
        def once(inputs: dict[str, Any]) -> None:
            last.clear()
            last.update(inputs)
            subject.call_text = ""
            with exits_as_failures(subject.noun):
                self.run(subject, **inputs)

        once()


def check(
    *kinds: str, unless: SkipReason | None = None, **inputs: Draw
) -> Callable[[Callable[..., None]], Check]:
    """Register the decorated function as a check of these kinds.

    `inputs` has a strategy for each argument after the subject, or a function from the subject to a strategy.
    """

    def register(function: Callable[..., None]) -> Check:
        registered = Check(function.__name__, kinds, function, inputs, unless)
        CHECKS.append(registered)
        return registered

    return register


def _problem(error: BaseException) -> str:
    """Return the first line of a failure's message."""
    if isinstance(error, ContractError):
        return str(error)
    return shorten(f"{type(error).__name__}: {str(error) or 'no message'}", LONGEST, placeholder=" ...")


@contextmanager
def exits_as_failures(noun: str) -> Iterator[None]:
    """Turn sys.exit and the exceptions that skip a test into a ContractError: nothing may skip its own check."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, unittest.SkipTest):
            raise
        raise ContractError(
            f"expected the {noun} to pass or fail this check, got {type(error).__name__}: {error}"
        ) from error
