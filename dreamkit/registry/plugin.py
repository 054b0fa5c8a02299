"""Reads one plug-in: what the hooks of its entry point give, and what is wrong with them.

Every plug-in gets a plug-in manager of its own, so that nothing one does can reach another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint

import pluggy

from dreamkit.errors import did_you_mean
from dreamkit.registry import hookspecs
from dreamkit.registry.hookspecs import PROJECT, Component
from dreamkit.registry.kinds import KINDS, Problem, Registered, ShippedRecipe
from dreamkit.registry.targets import describe_error, malformed_target
from dreamkit.storage.packages import package_folder

CORE = "dreamkit.registry.core"


class Plugin:
    """What one entry point gives, and what is wrong with it."""

    def __init__(self, entry_point: EntryPoint) -> None:
        self.entry_point = entry_point
        self.components: list[Registered] = []
        self.recipes: list[ShippedRecipe] = []
        self.problems: list[Problem] = []
        with self._contained("reading it"):
            self._read()

    def _read(self) -> None:
        module = None
        with self._contained(f"importing {self.entry_point.value}"):
            module = self.entry_point.load()
        if module is None:
            return
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(module)
        except pluggy.PluginValidationError as error:
            self._problem(" ".join(str(error).split()))
            return
        known = [name for name in vars(hookspecs) if name.startswith("dreamkit_")]
        callers = manager.get_hookcallers(module)
        if not callers:
            self._problem(
                f"it implements no hook; decorate functions of {self.entry_point.value} by dreamkit.hookimpl"
            )
        for caller in callers or ():
            if not caller.has_spec():
                self._problem(f"unknown hook '{caller.name}'; {did_you_mean(caller.name, known)}")
                continue
            for given in self._call(caller):
                if caller.name == "dreamkit_recipes":
                    self._add_recipes(given)
                else:
                    self._add(next(kind for kind in KINDS if KINDS[kind].hook == caller.name), given)

    @contextmanager
    def _contained(self, doing: str) -> Iterator[None]:
        """Makes a problem of any failure, sys.exit() included; only an interrupt by the user is let through."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._problem(f"{doing} failed: {describe_error(error)}")

    def _problem(self, message: str) -> None:
        self.problems.append(Problem(self.entry_point.name, origin(self.entry_point), message))

    def _call(self, caller: pluggy.HookCaller) -> list[object]:
        with self._contained(caller.name):
            given = list(caller())
            if not given:  # pluggy leaves out what is None
                self._problem(f"{caller.name} returned None; a `return` may be missing")
            return given
        return []

    def _add(self, kind: str, components: object) -> None:
        if not isinstance(components, Sequence) or not all(_is_component(c) for c in components):
            hook = KINDS[kind].hook
            self._problem(f"{hook} returned {components!r}, but dreamkit.Components made of text are wanted")
            return
        distribution = self.entry_point.dist
        assert distribution is not None, "entry points found by importlib.metadata know their distribution"
        for component in components:
            wrong = _wrong_name(component.name, KINDS[kind].words) or malformed_target(component.target)
            if wrong:
                self._problem(f"{kind} {component.name!r}: {wrong}")
                continue
            given_by = distribution.name, distribution.version, self.entry_point.name
            self.components.append(Registered(component, kind, *given_by, is_core=is_core(self.entry_point)))

    def _add_recipes(self, place: object) -> None:
        package, _, folder = str(place).partition(":")
        try:
            root = package_folder(package, folder).resolve()
        except LookupError as error:
            self._problem(f"dreamkit_recipes returned {place!r}, but {error.args[0]}")
            return
        for path in sorted(root.rglob("*.yaml")):
            name = path.relative_to(root).with_suffix("").as_posix()
            self.recipes.append(ShippedRecipe(name, path, origin(self.entry_point), self.entry_point.name))


def is_core(entry_point: EntryPoint) -> bool:
    """Return True for the entry point of dreamkit itself."""
    return entry_point.module == CORE


def origin(entry_point: EntryPoint) -> str:
    """`distribution version` of an entry point."""
    distribution = entry_point.dist
    return "unknown" if distribution is None else f"{distribution.name} {distribution.version}"


def _is_component(given: object) -> bool:
    return isinstance(given, Component) and all(isinstance(v, str) for v in dataclasses.astuple(given))


def _wrong_name(name: str, most: int) -> str | None:
    """Return why nobody can write a name of at most `most` words, else None."""
    words = name.split(" ")
    if len(words) <= most and all(word and word.isprintable() for word in words):
        return None
    return f"expected {'one word' if most == 1 else 'one or two words'} of letters, digits and '-'"
