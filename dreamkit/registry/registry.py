"""The components of the installed plug-ins, handed out by name; a broken plug-in stops no other.

What is wrong with a plug-in is a `Problem`: listed by `dreamkit plugins`, and repeated when a name is asked for that
nobody gives.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path

from dreamkit.errors import PluginError, did_you_mean
from dreamkit.registry.hookspecs import ENTRY_POINT_GROUP
from dreamkit.registry.kinds import Problem, Registered, ShippedRecipe
from dreamkit.registry.plugin import Plugin, origin
from dreamkit.registry.targets import import_target

ALLOW_LIST = "DREAMKIT_PLUGINS"


class Registry:
    """The components of all plug-ins that work, and the problems of those that do not."""

    def __init__(
        self,
        registered: Sequence[Registered],
        recipes: Sequence[ShippedRecipe] = (),
        problems: Sequence[Problem] = (),
    ) -> None:
        self._given: dict[tuple[str, str], list[Registered]] = defaultdict(list)
        for each in registered:
            self._given[each.kind, each.component.name].append(each)
        self._recipes: dict[str, list[ShippedRecipe]] = defaultdict(list)
        for recipe in recipes:
            self._recipes[recipe.name].append(recipe)
        self._problems = tuple(problems)

    @classmethod
    def load(cls) -> Registry:
        """Loads the plug-ins that `DREAMKIT_PLUGINS` allows (unset: all). Never fails because of a plug-in."""
        found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: (origin(e), e.name))
        installed = {entry_point.name for entry_point in found}
        allowed = set(installed)
        if ALLOW_LIST in os.environ:
            allowed = {name.strip() for name in os.environ[ALLOW_LIST].split(",")} - {""}
        registered: list[Registered] = []
        recipes: list[ShippedRecipe] = []
        problems = [
            Problem(
                name,
                "no distribution",
                f"{ALLOW_LIST} names it, but it is not installed; {did_you_mean(name, installed)}",
            )
            for name in sorted(allowed - installed)
        ]
        for entry_point in (e for e in found if e.name in allowed):
            plugin = Plugin(entry_point)
            registered += plugin.components
            recipes += plugin.recipes
            problems += plugin.problems
        return cls(registered, recipes, problems)

    def components(self, kind: str) -> Mapping[str, Registered]:
        """The usable components of a kind by name: those given by exactly one distribution."""
        return {name: given[0] for (k, name), given in self._given.items() if k == kind and len(given) == 1}

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with plug-ins, names given twice included."""
        problems = list(self._problems)
        for (kind, name), given in self._given.items():
            problems += _clashes(f"{kind} '{name}'", given)
        for name, shipped in self._recipes.items():
            problems += _clashes(f"recipe '{name}'", shipped)
        return tuple(dict.fromkeys(problems))

    def get(self, kind: str, name: str) -> type:
        """The class of a component.

        Raises:
            PluginError: nobody gives the name, two do, or its class cannot be imported or is not of this kind.
        """
        given = self._given.get((kind, name), [])
        if len(given) > 1:
            raise PluginError(
                f"{kind} '{name}' is given by {' and by '.join(each.origin for each in given)}; only one of them may; "
                f"uninstall the other, or name the plug-ins to use in {ALLOW_LIST}"
            )
        if not given:
            raise PluginError(
                f"unknown {kind} '{name}'; {did_you_mean(name, self.components(kind))}{self.about_problems()}"
            )
        return import_target(given[0])

    def recipes(self) -> Mapping[str, Path]:
        """The shipped recipes by name, such as `dreamllm/paper/stage2`."""
        return {name: shipped[0].path for name, shipped in self._recipes.items() if len(shipped) == 1}

    def about_problems(self) -> str:
        """The end of an error message about a missing name: which plug-ins are broken, if any."""
        return "".join(f"\n    perhaps because of {problem}" for problem in self.problems)


def distributions() -> set[str]:
    """The names of all installed distributions that have plug-ins, whether these work or not."""
    return {
        entry_point.dist.name for entry_point in entry_points(group=ENTRY_POINT_GROUP) if entry_point.dist
    }


def _clashes(what: str, given: Collection[Registered | ShippedRecipe]) -> list[Problem]:
    """The problems of those that all give `what`, where they are more than one."""
    problems = []
    for each in given if len(given) > 1 else ():
        others = ", ".join(sorted({other.origin for other in given} - {each.origin}))
        said = (
            f"also given by {others}; uninstall one of them" if others else "given more than once; remove one"
        )
        problems.append(Problem(each.entry_point, each.origin, f"{what} is {said}"))
    return problems
