"""Checks that predictions and references belong together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from dreamkit import DreamkitError, count, describe_value, excerpt

_MOST_NAMED = 5
Value = TypeVar("Value")


def named(ids: Iterable[Hashable]) -> str:
    """Return the first ids for a message: "3 ids: 1, 2, 3"."""
    names = [excerpt(str(name)) for name in ids]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{count(len(names), 'id')}: {', '.join(names[:_MOST_NAMED])}{more}"


def by_id(values: Mapping[Hashable, Value] | Sequence[Value], what: str) -> Mapping[Hashable, Value]:
    """Return values by id; those of a list have their places as ids.

    Raises:
        DreamkitError: neither a mapping nor a list.
    """
    if isinstance(values, Mapping):
        return values
    if isinstance(values, Sequence) and not isinstance(values, str):
        return dict(enumerate(values))
    raise DreamkitError(f"{what}: expected a dict of id to value, or a list, got {describe_value(values)}")


def id_problems(
    found: Mapping[Hashable, object], expected: Mapping[Hashable, object], names: tuple[str, str]
) -> list[str]:
    """Return problems of two mappings that must have the same ids and at least one.

    `names` are those of `found` and of `expected` in messages, such as "predictions" and "references".
    """
    first, second = names
    if not expected and not found:
        return [f"expected at least one id in {first} and {second}, got none"]
    problems = []
    if missing := [key for key in expected if key not in found]:
        problems.append(
            f"expected {first} for every id of {second}, got none for {named(missing)}; add them, or remove these ids "
            f"from {second}"
        )
    if extra := [key for key in found if key not in expected]:
        problems.append(
            f"expected {second} for every id of {first}, got none for {named(extra)}; add them, or remove these ids "
            f"from {first}"
        )
    return problems


def raise_problems(problems: Sequence[str]) -> None:
    """Raise a DreamkitError with all `problems`, a line each, if there are any."""
    if problems:
        raise DreamkitError("\n".join(problems))
