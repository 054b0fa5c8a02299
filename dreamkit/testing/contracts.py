"""The contract kit's functions: for pytest, for a script, and the list of checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dreamkit.earlier_names import warn_of
from dreamkit.errors import did_you_mean, with_article
from dreamkit.testing import checks as _all  # noqa: F401  importing them makes them
from dreamkit.testing.bound import Bound, Mistake, outcomes
from dreamkit.testing.check import CHECKS, Check
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.outcomes import Report
from dreamkit.testing.subject import Build
from dreamkit.testing.subject_kinds import KINDS, SUBJECTS, tiny_part as tiny_part

__all__ = ["checks", "parametrize", "tiny_part", "verify"]

Test = TypeVar("Test", bound=Callable[..., Any])


def __getattr__(name: str) -> Any:
    if name == "miniature":
        warn_of("contracts.miniature", "contracts.tiny_part")
        return tiny_part
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def checks(kind: str) -> tuple[Check, ...]:
    """The checks of a kind of part: `vision_encoder`, `language_model`, `projector` or `image_decoder`.

    Raises:
        KitError: no such kind.
    """
    if kind not in KINDS:
        raise KitError(f"there is no kind '{kind}'; {did_you_mean(kind, KINDS)}")
    return tuple(check for check in CHECKS if kind in check.kinds)


def bind(
    kind: str,
    build: Build,
    *,
    only: str | Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    quick: bool = False,
    repeat: str = "",
) -> list[Bound]:
    """The checks of a kind, each bound to the part that `build` makes. What is given is as in `verify`.

    `repeat` is the command that tries one again, with `{check}` where it names the check.
    """
    known = {check.name: check for check in checks(kind)}
    expected = dict(expected_failures or {})
    chosen = list(known) if only is None else [only] if isinstance(only, str) else list(only)
    for name in (*chosen, *expected):
        if name not in known:
            raise KitError(f"there is no check '{name}' of {with_article(kind)}; {did_you_mean(name, known)}")
    one, reported = SUBJECTS[kind](build), dict[Mistake, str]()
    return [
        Bound(known[name], one, expected.get(name), quick, repeat.format(check=name), reported)
        for name in chosen
    ]


def parametrize(
    kind: str, build: Build, expected_failures: Mapping[str, str] | None = None, *, quick: bool = False
) -> Callable[[Test], Test]:
    """Makes a pytest test of one function with an argument `check`, which it calls: one test a check, by its name.

        @contracts.parametrize("projector", contracts.tiny_part(Pool))
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
        params.append(pytest.param(bound, id=bound.name, marks=marks))
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
    `quick` tries few inputs for each check, and ends within seconds.

    Raises:
        KitError: an unknown kind or an unknown name of a check.
    """
    repeat = f"contracts.verify('{kind}', build, only='{{check}}')"
    bound = bind(kind, build, only=only, expected_failures=expected_failures, quick=quick, repeat=repeat)
    return Report(kind, list(outcomes(bound)))
