"""The functions of the contract kit: for pytest, for a script, and the list of checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from dreamkit.earlier_names import warn_of
from dreamkit.errors import did_you_mean, with_article
from dreamkit.testing import checks as _all  # noqa: F401  importing them registers them
from dreamkit.testing.bound import BoundCheck, Mistake, outcomes
from dreamkit.testing.check import CHECKS, Check, current_check
from dreamkit.testing.dataset_subject import Example, tiny_dataset as tiny_dataset
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.outcomes import Report
from dreamkit.testing.part_subject import Build as BuildPart
from dreamkit.testing.subject_kinds import KINDS, SUBJECTS, tiny_part as tiny_part

__all__ = ["checks", "parametrize", "tiny_dataset", "tiny_part", "verify"]

Build: TypeAlias = BuildPart | Example

Test = TypeVar("Test", bound=Callable[..., Any])


def __getattr__(name: str) -> Any:
    if name == "miniature":
        warn_of("contracts.miniature", "contracts.tiny_part")
        return tiny_part
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def checks(kind: str) -> tuple[Check, ...]:
    """Return the checks of `vision_encoder`, `language_model`, `projector`, `image_decoder` or `dataset`.

    Raises:
        KitError: the kind is unknown.
    """
    if kind not in KINDS:
        raise KitError(f"unknown kind '{kind}'; {did_you_mean(kind, KINDS)}")
    return tuple(check for check in CHECKS if kind in check.kinds)


def bind(
    kind: str,
    build: Build,
    *,
    only: str | Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    quick: bool = False,
    repeat: str = "",
) -> list[BoundCheck]:
    """Return the checks of a kind, each bound to the part or data set that `build` returns.

    The arguments are those of `verify`. `repeat` is the command that repeats one check, with `{check}` for its name.

    Raises:
        KitError: the kind or the name of a check is unknown.
    """
    known = {check.name: check for check in checks(kind)}
    expected = {current_check(name): reason for name, reason in (expected_failures or {}).items()}
    chosen = list(known) if only is None else [only] if isinstance(only, str) else list(only)
    chosen = [current_check(name) for name in chosen]
    for name in (*chosen, *expected):
        if name not in known:
            raise KitError(f"unknown check '{name}' of {with_article(kind)}; {did_you_mean(name, known)}")
    subject, reported = SUBJECTS[kind](build), dict[Mistake, str]()
    return [
        BoundCheck(known[name], subject, expected.get(name), quick, repeat.format(check=name), reported)
        for name in chosen
    ]


def parametrize(
    kind: str, build: Build, expected_failures: Mapping[str, str] | None = None, *, quick: bool = False
) -> Callable[[Test], Test]:
    """Make one pytest test for each check, with the check's name, of a function that calls its argument `check`.

        @contracts.parametrize("projector", contracts.tiny_part(Pool))
        def test_contract(check):
            check()

    Expected failures are strict `xfail`s: an expected failure that passes is an error.

    Raises:
        KitError: the kind, or a name in `expected_failures`, is unknown.
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
    """Try a part or a data set on the checks of its kind and report the outcomes.

    Args:
        kind: `vision_encoder`, `language_model`, `projector`, `image_decoder` or `dataset`.
        build: returns a fresh, tiny part on the CPU, with weights from torch's global generator, without a network. For
            a data set, it is the result of `tiny_dataset`.
        only: the name of one check, or of several. The default is all checks of the kind.
        expected_failures: reasons by the names of checks that should fail. One that passes counts as a failure.
        quick: try two inputs for each check instead of fifteen; this takes seconds.

    Raises:
        KitError: the kind or the name of a check is unknown.
    """
    repeat = f"contracts.verify('{kind}', build, only='{{check}}')"
    bound = bind(kind, build, only=only, expected_failures=expected_failures, quick=quick, repeat=repeat)
    return Report(kind, list(outcomes(bound)))
