"""The components of the installed plug-ins by name. A broken plug-in does not affect another.

`dreamkit plugins` lists the `Problem`s of plug-ins. The error about an unknown name repeats them as possible causes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

from dreamkit.errors import PluginError, did_you_mean, excerpt
from dreamkit.registry.installed import installed_plugins
from dreamkit.registry.kinds import Problem, Registered, ShippedRecipe
from dreamkit.registry.plugin import Plugin, is_core, origin
from dreamkit.registry.targets import import_target

ALLOW_LIST = "DREAMKIT_PLUGINS"


class Registry:
    """The components of all working plug-ins, and the problems of the others."""

    def __init__(
        self,
        registered: Sequence[Registered],
        recipes: Sequence[ShippedRecipe] = (),
        problems: Sequence[Problem] = (),
        excluded: Collection[str] = (),
    ) -> None:
        """Create a registry; `excluded` are the installed entry points that `DREAMKIT_PLUGINS` does not name."""
        self._registered = tuple(registered)
        self._recipes: dict[str, list[ShippedRecipe]] = defaultdict(list)
        for recipe in recipes:
            self._recipes[recipe.name].append(recipe)
        self._problems = tuple(problems)
        self._excluded = sorted(excluded)

    @classmethod
    def load(cls) -> Registry:
        """Load the plug-ins that `DREAMKIT_PLUGINS` names, or all if it is not set. A broken plug-in raises nothing.

        The commands of dreamkit itself are always loaded, so that `dreamkit plugins` can list the problems.
        """
        found, damaged = installed_plugins()
        by_origin = sorted(found, key=lambda e: (origin(e), e.name))
        # One module is one plug-in, even if a renamed distribution is installed under both names.
        unique = {(entry_point.name, entry_point.value): entry_point for entry_point in by_origin}.values()
        installed = {entry_point.name for entry_point in unique}
        allowed = set(installed)
        if ALLOW_LIST in os.environ:
            allowed = {name.strip() for name in os.environ[ALLOW_LIST].split(",")} - {""}
        registered: list[Registered] = []
        recipes: list[ShippedRecipe] = []
        problems = damaged + [
            Problem(
                name,
                "no distribution",
                f"named in {ALLOW_LIST}, but not installed; {did_you_mean(name, installed)}",
            )
            for name in sorted(allowed - installed)
        ]
        for entry_point in unique:
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
        """Return the usable components of a kind by name: those whose names are unique."""
        return {
            each.name: each
            for each in self._registered
            if each.kind == kind and self._claims(kind, each.name) == [each]
        }

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of all plug-ins, including names that clash."""
        problems = list(self._problems)
        for mine in self._registered:
            for other in self._claims(mine.kind, mine.name):
                if other is not mine:
                    problems.append(_clash(mine, other, mine.kind))
        for shipped in self._recipes.values():
            problems += [_clash(mine, other, "recipe") for mine, other in permutations(shipped, 2)]
        return tuple(dict.fromkeys(problems))

    def get(self, kind: str, name: str) -> Any:
        """Return the class of a component, or the function or typer app of a command.

        Raises:
            PluginError: no plug-in has the name, two plug-ins have it, or its class cannot be imported or is not of
                this kind.
        """
        claims = self._claims(kind, name)
        matches = [each for each in claims if each.name == name]
        if not matches:
            first_words = {known.partition(" ")[0] for known in self.components(kind)} - {name}
            near = did_you_mean(name, first_words.union(self.components(kind)))
            raise PluginError(f"unknown {excerpt(kind)} '{excerpt(name)}'; {near}{self.about_problems()}")
        if len(claims) > 1:
            by = (each.origin + (f" (as '{each.name}')" if each.name != name else "") for each in claims)
            raise PluginError(
                f"{kind} '{name}' is registered by {' and by '.join(by)}; uninstall one, or name the plug-ins to load "
                f"in {ALLOW_LIST}"
            )
        return import_target(matches[0])

    def _claims(self, kind: str, name: str) -> list[Registered]:
        """Return the components that claim a name: a command claims its own name and, if it has two words, its group's.

        Only dreamkit itself can claim the name of one of its commands.
        """
        claims = [
            each
            for each in self._registered
            if each.kind == kind
            and (f"{each.name} ".startswith(f"{name} ") or f"{name} ".startswith(f"{each.name} "))
        ]
        return [each for each in claims if each.is_own_command] or claims

    def recipes(self) -> Mapping[str, Path]:
        """Return the files of the shipped recipes by name, such as `dreamllm/paper/stage2`."""
        return {name: shipped.path for name, shipped in self.shipped_recipes().items()}

    def shipped_recipes(self) -> Mapping[str, ShippedRecipe]:
        """Return the usable shipped recipes by name: those whose names are unique."""
        return {name: shipped[0] for name, shipped in self._recipes.items() if len(shipped) == 1}

    def about_problems(self) -> str:
        """Return the end of an error about a missing name: a line for each problem and for the excluded plug-ins."""
        causes = [str(problem) for problem in self.problems if not problem.is_note]
        if self._excluded:
            causes.append(f"{ALLOW_LIST} excludes {', '.join(self._excluded)}")
        return "".join(f"\n    possible cause: {cause}" for cause in causes)


def distributions() -> set[str]:
    """Return the names of all installed distributions with plug-ins, working or broken."""
    return {entry_point.dist.name for entry_point in installed_plugins()[0] if entry_point.dist}


def _clash(mine: Registered | ShippedRecipe, other: Registered | ShippedRecipe, kind: str) -> Problem:
    """Return the problem of `mine`, whose name clashes with that of `other`."""
    is_same_origin = mine.origin == other.origin
    if isinstance(other, Registered) and other.is_own_command:
        clash, fix = f"clashes with '{other.name}', a command of dreamkit itself", "rename it"
    elif mine.name != other.name:
        clash = f"clashes with '{other.name}' of {other.origin}: a word is a command or a group of commands, not both"
        fix = "rename one" if is_same_origin else "uninstall one of them"
    elif is_same_origin:
        clash, fix = "is registered more than once", "remove one"
    else:
        clash, fix = f"is also registered by {other.origin}", "uninstall one of them"
    return Problem(mine.entry_point, mine.origin, f"{kind} '{mine.name}' {clash}; {fix}")
