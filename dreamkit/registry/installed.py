"""The entry points of installed plug-ins. A distribution with damaged metadata does not affect another."""

from __future__ import annotations

from importlib.metadata import Distribution, EntryPoint, distributions, entry_points

from dreamkit.errors import describe_error
from dreamkit.registry.hookspecs import ENTRY_POINT_GROUP
from dreamkit.registry.kinds import Problem


def installed_plugins() -> tuple[list[EntryPoint], list[Problem]]:
    """Return the entry points of all plug-ins, and a problem for each distribution whose metadata cannot be read."""
    problems: list[Problem] = []
    try:
        found = list(entry_points(group=ENTRY_POINT_GROUP))
    except Exception:  # importlib.metadata does not name the distribution, and raises any error
        found = _one_by_one(problems)
    readable = []
    for entry_point in found:
        reason = _metadata_error(entry_point.dist)
        if reason is None:
            readable.append(entry_point)
        else:
            problems.append(_problem(entry_point.dist, entry_point.name, "METADATA", reason))
    return readable, problems


def _one_by_one(problems: list[Problem]) -> list[EntryPoint]:
    """Return the entry points of the distributions that have readable ones; add problems of the others."""
    found: dict[str, list[EntryPoint]] = {}
    for distribution in distributions():
        try:
            points = list(distribution.entry_points.select(group=ENTRY_POINT_GROUP))
            # of two with one name, the first on the path is the one that Python imports
            found.setdefault(str(distribution.name), points)
        except Exception as error:
            problems.append(_problem(distribution, "?", "entry_points.txt", describe_error(error)))
    return [point for points in found.values() for point in points]


def _metadata_error(distribution: Distribution | None) -> str | None:
    """Return why the name or version of a distribution cannot be read, or None."""
    assert distribution is not None, "importlib.metadata sets the distribution of entry points"
    try:
        metadata = distribution.metadata  # each access parses the file
        values = {key: metadata[key] for key in ("Name", "Version")}
    except Exception as error:  # the file is missing, or its bytes are not text
        return describe_error(error)
    return next((f"it has no {key}" for key, value in values.items() if not isinstance(value, str)), None)


def _problem(distribution: Distribution | None, entry_point: str, file: str, reason: str) -> Problem:
    place = str(getattr(distribution, "_path", "unknown"))  # the name may be unreadable
    return Problem(entry_point, place, f"cannot read {file}: {reason}; install the distribution again")
