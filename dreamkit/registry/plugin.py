"""One plug-in: the components and recipes that its hooks return, and its problems.

Every plug-in has its own plug-in manager, so that none can affect another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint

import pluggy

from dreamkit.errors import describe_error, did_you_mean, excerpt
from dreamkit.registry import hookspecs
from dreamkit.registry.hookspecs import PROJECT, Component
from dreamkit.registry.kinds import KINDS, Problem, Registered, ShippedRecipe
from dreamkit.registry.requirements import requirement_problems
from dreamkit.registry.targets import malformed_target
from dreamkit.storage.packages import package_folder

CORE = "dreamkit.registry.core"


class Plugin:
    """The components, recipes and problems of one entry point."""

    def __init__(self, entry_point: EntryPoint) -> None:
        self.entry_point = entry_point
        self.origin = origin(entry_point)  # read once: each access parses the metadata
        self.components: list[Registered] = []
        self.recipes: list[ShippedRecipe] = []
        self.problems: list[Problem] = []
        with self._contained("reading the plug-in"):
            self._read()
        with self._contained("reading its requirements"):
            self._compare_requirements()

    def _compare_requirements(self) -> None:
        distribution = self.entry_point.dist
        assert distribution is not None, "importlib.metadata sets the distribution of entry points"
        for message, is_met in requirement_problems(distribution):
            self._problem(message, is_note=is_met)

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
                f"no hook is implemented; decorate functions of {self.entry_point.value} with dreamkit.hookimpl"
            )
        for caller in callers or ():
            if not caller.has_spec():
                self._problem(f"unknown hook '{caller.name}'; {did_you_mean(caller.name, known)}")
                continue
            for returned in self._call(caller):
                if caller.name == "dreamkit_recipes":
                    self._add_recipes(returned)
                else:
                    self._add(next(kind for kind in KINDS if KINDS[kind].hook == caller.name), returned)

    @contextmanager
    def _contained(self, action: str) -> Iterator[None]:
        """Record any error, also sys.exit(), as a problem; only KeyboardInterrupt passes."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._problem(f"{action} failed: {describe_error(error)}")

    def _problem(self, message: str, *, is_note: bool = False) -> None:
        self.problems.append(Problem(self.entry_point.name, self.origin, message, is_note))

    def _call(self, caller: pluggy.HookCaller) -> list[object]:
        with self._contained(caller.name):
            returned = list(caller())
            if not returned:  # pluggy leaves out None
                self._problem(f"{caller.name} returned None; a `return` may be missing")
            return returned
        return []

    def _add(self, kind: str, components: object) -> None:
        if not isinstance(components, Sequence) or not all(_is_component(c) for c in components):
            hook = KINDS[kind].hook
            self._problem(
                f"expected dreamkit.Components of strings from {hook}, got {excerpt(repr(components))}"
            )
            return
        assert self.entry_point.dist is not None, "importlib.metadata sets the distribution of entry points"
        distribution, _, version = self.origin.rpartition(" ")
        for component in components:
            reason = _invalid_name(component.name, KINDS[kind].words) or malformed_target(component.target)
            if reason:
                self._problem(f"{kind} {excerpt(repr(component.name))}: {reason}")
                continue
            source = distribution, version, self.entry_point.name
            self.components.append(Registered(component, kind, *source, is_core=is_core(self.entry_point)))

    def _add_recipes(self, place: object) -> None:
        package, _, folder = str(place).partition(":")
        try:
            root = package_folder(package, folder).resolve()
        except LookupError as error:
            self._problem(f"dreamkit_recipes returned {excerpt(repr(place))}: {error.args[0]}")
            return
        for path in sorted(path for path in root.rglob("*.yaml") if path.is_file()):
            name = path.relative_to(root).with_suffix("").as_posix()
            self.recipes.append(ShippedRecipe(name, path, self.origin, self.entry_point.name))


def is_core(entry_point: EntryPoint) -> bool:
    """Return True for the entry point of dreamkit itself."""
    return entry_point.module == CORE


def origin(entry_point: EntryPoint) -> str:
    """Return the distribution of an entry point with its version: `dreamkit-wave 0.1.0`."""
    distribution = entry_point.dist
    return "unknown" if distribution is None else f"{distribution.name} {distribution.version}"


def _is_component(item: object) -> bool:
    return isinstance(item, Component) and all(isinstance(v, str) for v in dataclasses.astuple(item))


def _invalid_name(name: str, most: int) -> str | None:
    """Return why `name` is not a name of at most `most` words, or None."""
    words = name.split(" ")
    if len(words) <= most and all(word and word.isprintable() for word in words):
        return None
    return f"expected {'one word' if most == 1 else 'one or two words'} of letters, digits and '-'"
