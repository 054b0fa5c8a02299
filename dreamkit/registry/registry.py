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
from itertools import permutations
from pathlib import Path
from typing import Any

from dreamkit.errors import PluginError, did_you_mean
from dreamkit.registry.hookspecs import ENTRY_POINT_GROUP
from dreamkit.registry.kinds import Problem, Registered, ShippedRecipe
from dreamkit.registry.plugin import Plugin, is_core, origin
from dreamkit.registry.targets import import_target

ALLOW_LIST = "DREAMKIT_PLUGINS"


class Registry:
    """The components of all plug-ins that work, and the problems of those that do not."""

    def __init__(
        self,
        registered: Sequence[Registered],
        recipes: Sequence[ShippedRecipe] = (),
        problems: Sequence[Problem] = (),
        left_out: Collection[str] = (),
    ) -> None:
        """`left_out` are the entry points that are installed and not allowed."""
        self._registered = tuple(registered)
        self._recipes: dict[str, list[ShippedRecipe]] = defaultdict(list)
        for recipe in recipes:
            self._recipes[recipe.name].append(recipe)
        self._problems = tuple(problems)
        self._left_out = sorted(left_out)

    @classmethod
    def load(cls) -> Registry:
        """Load the plug-ins that `DREAMKIT_PLUGINS` allows (unset: all). Never fails because of a plug-in.

        The commands of dreamkit itself are always there: `dreamkit plugins` is what shows what is wrong.
        """
        by_origin = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: (origin(e), e.name))
        # One module is one plug-in, also where a distribution that was renamed is installed under both names.
        found = {(entry_point.name, entry_point.value): entry_point for entry_point in by_origin}.values()
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
        for entry_point in found:
            if entry_point.name not in allowed:
                if is_core(entry_point):
                    registered += [each for each in Plugin(entry_point).components if each.is_own_command]
                continue
            plugin = Plugin(entry_point)
            registered += plugin.components
            recipes += plugin.recipes
            problems += plugin.problems
        return cls(registered, recipes, problems, installed - allowed)

    def components(self, kind: str) -> Mapping[str, Registered]:
        """The usable components of a kind by name: those whose names clash with no other."""
        return {
            each.name: each
            for each in self._registered
            if each.kind == kind and self._claims(kind, each.name) == [each]
        }

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with plug-ins, names that clash included."""
        problems = list(self._problems)
        for mine in self._registered:
            for other in self._claims(mine.kind, mine.name):
                if other is not mine:
                    problems.append(_clash(mine, other, mine.kind))
        for shipped in self._recipes.values():
            problems += [_clash(mine, other, "recipe") for mine, other in permutations(shipped, 2)]
        return tuple(dict.fromkeys(problems))

    def get(self, kind: str, name: str) -> Any:
        """The class of a component; of a command, its function or typer app.

        Raises:
            PluginError: nobody gives the name, two do, or its class cannot be imported or is not of this kind.
        """
        claims = self._claims(kind, name)
        given = [each for each in claims if each.name == name]
        if not given:
            first_words = {known.partition(" ")[0] for known in self.components(kind)} - {name}
            near = did_you_mean(name, first_words.union(self.components(kind)))
            raise PluginError(f"unknown {kind} '{name}'; {near}{self.about_problems()}")
        if len(claims) > 1:
            by = (each.origin + (f" (as '{each.name}')" if each.name != name else "") for each in claims)
            raise PluginError(
                f"{kind} '{name}' is given by {' and by '.join(by)}; only one of them may; uninstall the other, or "
                f"name the plug-ins to use in {ALLOW_LIST}"
            )
        return import_target(given[0])

    def _claims(self, kind: str, name: str) -> list[Registered]:
        """The components that have this name, or are commands of which one is the first word of the other.

        A command of dreamkit itself is the only one to have its name.
        """
        claims = [
            each
            for each in self._registered
            if each.kind == kind
            and (f"{each.name} ".startswith(f"{name} ") or f"{name} ".startswith(f"{each.name} "))
        ]
        return [each for each in claims if each.is_own_command] or claims

    def recipes(self) -> Mapping[str, Path]:
        """The files of the shipped recipes by name, such as `dreamllm/paper/stage2`."""
        return {name: shipped.path for name, shipped in self.shipped_recipes().items()}

    def shipped_recipes(self) -> Mapping[str, ShippedRecipe]:
        """The usable shipped recipes by name: those whose names clash with no other."""
        return {name: shipped[0] for name, shipped in self._recipes.items() if len(shipped) == 1}

    def about_problems(self) -> str:
        """The end of an error message about a missing name: which plug-ins are broken or left out, if any."""
        reasons = [f"of {problem}" for problem in self.problems]
        if self._left_out:
            reasons.append(f"{ALLOW_LIST} leaves out {', '.join(self._left_out)}")
        return "".join(f"\n    perhaps because {reason}" for reason in reasons)


def distributions() -> set[str]:
    """The names of all installed distributions that have plug-ins, whether these work or not."""
    return {
        entry_point.dist.name for entry_point in entry_points(group=ENTRY_POINT_GROUP) if entry_point.dist
    }


def _clash(mine: Registered | ShippedRecipe, other: Registered | ShippedRecipe, kind: str) -> Problem:
    """The problem of `mine`, whose name leaves none for `other`."""
    what = f"{kind} '{mine.name}'"
    if isinstance(other, Registered) and other.is_own_command:
        said, remedy = f"clashes with '{other.name}', a command of dreamkit itself", "rename it"
    elif mine.name != other.name:
        said = f"clashes with '{other.name}' of {other.origin}: a word is a command or a group of commands, not both"
        remedy = "uninstall one of them" if mine.origin != other.origin else "rename one"
    elif mine.origin != other.origin:
        said, remedy = f"is also given by {other.origin}", "uninstall one of them"
    else:
        said, remedy = "is given more than once", "remove one"
    return Problem(mine.entry_point, mine.origin, f"{what} {said}; {remedy}")
