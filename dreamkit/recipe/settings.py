"""One validation of generation settings, for recipes, the command line and Python."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from dreamkit.errors import ConfigError, DreamkitError, RecipeProblem, did_you_mean
from dreamkit.recipe.fields import section_keys
from dreamkit.recipe.generation_section import GenerationSection
from dreamkit.recipe.schema import SchemaReader
from dreamkit.recipe.sections import plain
from dreamkit.recipe.tree import Node


def generation_section(
    settings: Mapping[str, Any], defaults: GenerationSection | None = None
) -> GenerationSection:
    """Return `defaults` with `settings` in their place, all checked as a recipe's `generation` section is.

    Raises:
        DreamkitError: an unknown setting.
        ConfigError: values of another type or outside their bounds, all at once.
    """
    known = section_keys(GenerationSection)
    for name in settings:
        if name not in known:
            raise DreamkitError(f"unknown setting '{name}'; {did_you_mean(name, known)}")
    values = plain(defaults or GenerationSection()) | {
        name: _with_plain_numbers(value) for name, value in settings.items()
    }
    reader = SchemaReader()
    section = reader.section(GenerationSection, Node.from_plain(values, "generation", Path()), "")
    if reader.problems:
        raise ConfigError({problem.key: _with_origin(problem, settings) for problem in reader.problems})
    assert isinstance(section, GenerationSection), "a section without problems is read"
    return section


def _with_origin(problem: RecipeProblem, settings: Mapping[str, Any]) -> str:
    """Return the message of a problem; it says so if the value is none of `settings`."""
    is_set = problem.key.partition(".")[0] in settings
    return problem.message if is_set or not settings else f"{problem.message} (the value is the recipe's)"


def _with_plain_numbers(value: Any) -> Any:
    """Return a number of another library, such as numpy, as an int or float, also in lists; other values stay."""
    if isinstance(value, list | tuple):
        return [_with_plain_numbers(item) for item in value]
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
