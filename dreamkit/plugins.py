"""Finds the installed plug-ins, keeps broken ones from stopping the others, and hands out components by name.

Every plug-in gets a plug-in manager of its own, so that nothing one does can reach another. What is wrong with
one is a `Problem`: listed by `dreamkit plugins`, and repeated when a name is asked for that nobody gives.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import os
import re
import symtable
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pluggy

from dreamkit import hookspecs
from dreamkit.errors import PluginError, did_you_mean
from dreamkit.hookspecs import ENTRY_POINT_GROUP, PROJECT, Component

ALLOW_LIST = "DREAMKIT_PLUGINS"


@dataclass(frozen=True)
class Kind:
    """The hook that gives components of one kind, and the class of `dreamkit.interfaces` they derive from."""

    hook: str
    interface: str


KINDS: Mapping[str, Kind] = {
    "vision_encoder": Kind("dreamkit_vision_encoders", "VisionEncoder"),
    "language_model": Kind("dreamkit_language_models", "LanguageModel"),
    "projector": Kind("dreamkit_projectors", "Projector"),
    "image_decoder": Kind("dreamkit_image_decoders", "ImageDecoder"),
    "dataset": Kind("dreamkit_datasets", "Dataset"),
    "task": Kind("dreamkit_tasks", "Task"),
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with one plug-in: its entry point, its distribution with version, and why."""

    entry_point: str
    distribution: str
    message: str

    def __str__(self) -> str:
        return f"plug-in '{self.entry_point}' of {self.distribution}: {self.message}"


@dataclass(frozen=True)
class Registered:
    """A component and who gives it."""

    component: Component
    kind: str
    distribution: str
    version: str
    entry_point: str

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}"


class Registry:
    """The components of all plug-ins that work, and the problems of those that do not."""

    def __init__(
        self,
        registered: Sequence[Registered],
        recipes: Sequence[tuple[str, Path, EntryPoint]] = (),
        problems: Sequence[Problem] = (),
    ) -> None:
        self._given: dict[tuple[str, str], list[Registered]] = defaultdict(list)
        for each in registered:
            self._given[each.kind, each.component.name].append(each)
        self._recipes: dict[str, list[tuple[Path, EntryPoint]]] = defaultdict(list)
        for name, path, entry_point in recipes:
            self._recipes[name].append((path, entry_point))
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
        recipes: list[tuple[str, Path, EntryPoint]] = []
        problems = [
            Problem(
                name,
                "no distribution",
                f"{ALLOW_LIST} names it, but it is not installed; {did_you_mean(name, installed)}",
            )
            for name in sorted(allowed - installed)
        ]
        for entry_point in (e for e in found if e.name in allowed):
            plugin = _Plugin(entry_point)
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
            for each in given if len(given) > 1 else ():
                others = ", ".join(other.origin for other in given if other is not each)
                message = f"{kind} '{name}' is also given by {others}; uninstall one of them"
                problems.append(Problem(each.entry_point, each.origin, message))
        for name, shipped in self._recipes.items():
            for _, entry_point in shipped if len(shipped) > 1 else ():
                others = ", ".join(origin(other) for _, other in shipped if other is not entry_point)
                message = f"recipe '{name}' is also shipped by {others}; uninstall one of them"
                problems.append(Problem(entry_point.name, origin(entry_point), message))
        return tuple(problems)

    def get(self, kind: str, name: str) -> type:
        """The class of a component.

        Raises:
            PluginError: nobody gives the name, two do, or its class cannot be imported or is not of this kind.
        """
        given = self._given.get((kind, name), [])
        if len(given) > 1:
            raise PluginError(
                f"{kind} '{name}' is given by {' and by '.join(each.origin for each in given)}; uninstall one of them, "
                f"or name the plug-ins to use in {ALLOW_LIST}"
            )
        if not given:
            raise PluginError(
                f"unknown {kind} '{name}'; {did_you_mean(name, self.components(kind))}{self.about_problems()}"
            )
        return _import(given[0])

    def recipes(self) -> Mapping[str, Path]:
        """The shipped recipes by name, such as `dreamllm/stage2`."""
        return {name: shipped[0][0] for name, shipped in self._recipes.items() if len(shipped) == 1}

    def about_problems(self) -> str:
        """The end of an error message about a missing name: which plug-ins are broken, if any."""
        return "".join(f"\n    perhaps because of {problem}" for problem in self.problems)


class _Plugin:
    """What one entry point gives, and what is wrong with it."""

    def __init__(self, entry_point: EntryPoint) -> None:
        self.entry_point = entry_point
        self.components: list[Registered] = []
        self.recipes: list[tuple[str, Path, EntryPoint]] = []
        self.problems: list[Problem] = []
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        # A plug-in may fail in any way, sys.exit() included; only an interrupt by the user is let through.
        try:
            module = entry_point.load()
        except (Exception, SystemExit) as error:
            self._problem(f"importing {entry_point.value} failed: {_said(error)}")
            return
        try:
            manager.register(module)
        except pluggy.PluginValidationError as error:
            self._problem(" ".join(str(error).split()))
            return
        known = [name for name in vars(hookspecs) if name.startswith("dreamkit_")]
        callers = manager.get_hookcallers(module)
        if not callers:
            self._problem(
                f"it implements no hook; decorate functions of {entry_point.value} by dreamkit.hookimpl"
            )
        for caller in callers or ():
            if not caller.has_spec():
                self._problem(f"unknown hook '{caller.name}'; {did_you_mean(caller.name, known)}")
        for kind, given_by in KINDS.items():
            for components in self._call(manager, given_by.hook):
                self._add(kind, given_by.hook, components)
        for place in self._call(manager, "dreamkit_recipes"):
            self._add_recipes(place)

    def _problem(self, message: str) -> None:
        self.problems.append(Problem(self.entry_point.name, origin(self.entry_point), message))

    def _call(self, manager: pluggy.PluginManager, hook: str) -> list[object]:
        try:
            return list(getattr(manager.hook, hook)())
        except (Exception, SystemExit) as error:
            self._problem(f"{hook} failed: {_said(error)}")
            return []

    def _add(self, kind: str, hook: str, components: object) -> None:
        if not isinstance(components, Sequence) or not all(_is_component(c) for c in components):
            self._problem(f"{hook} returned {components!r}, but dreamkit.Components made of text are wanted")
            return
        distribution = self.entry_point.dist
        assert distribution is not None, "entry points found by importlib.metadata know their distribution"
        for component in components:
            wrong = _wrong_target(component.target)
            if wrong:
                self._problem(f"{kind} '{component.name}': {wrong}")
                continue
            self.components.append(
                Registered(component, kind, distribution.name, distribution.version, self.entry_point.name)
            )

    def _add_recipes(self, place: object) -> None:
        package, _, folder = str(place).partition(":")
        try:
            locations = _spec(package).submodule_search_locations or []
        except (Exception, SystemExit) as error:
            self._problem(f"dreamkit_recipes returned {place!r}, but {_said(error)}")
            return
        roots = [
            Path(location, folder).resolve() for location in locations if Path(location, folder).is_dir()
        ]
        if not roots:
            self._problem(
                f"dreamkit_recipes returned {place!r}, but there is no folder '{folder}' in '{package}'"
            )
        for path in (path for root in roots[:1] for path in sorted(root.rglob("*.yaml"))):
            name = path.relative_to(roots[0]).with_suffix("").as_posix()
            self.recipes.append((name, path, self.entry_point))


def origin(entry_point: EntryPoint) -> str:
    """`distribution version` of an entry point."""
    distribution = entry_point.dist
    return "unknown" if distribution is None else f"{distribution.name} {distribution.version}"


def _is_component(given: object) -> bool:
    return isinstance(given, Component) and all(isinstance(v, str) for v in dataclasses.astuple(given))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _spec(module: str) -> importlib.machinery.ModuleSpec:
    """The spec of a module, found without importing it or the packages around it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    name = top
    for piece in rest:
        name += f".{piece}"
        if spec is None or spec.submodule_search_locations is None:
            break
        spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or spec.name != module:
        raise ModuleNotFoundError(f"there is no module '{module}'")
    return spec


def _wrong_target(target: str) -> str | None:
    """What is wrong with a `"module:Class"`, found by reading the module's source instead of importing it."""
    module, _, name = target.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", target):
        return f"its target {target!r} is not of the form 'module:Class'"
    try:
        loader = _spec(module).loader
        source = (
            loader.get_source(module) if isinstance(loader, importlib.machinery.SourceFileLoader) else None
        )
        if source is None:  # a compiled module can only be asked by importing it, which `get` does
            return None
        bound = set(_bound(symtable.symtable(source, module, "exec")))
    except (Exception, SystemExit) as error:
        return f"its class {target} cannot be found: {_said(error)}"
    if (
        name in bound
        or "__getattr__" in bound
        or re.search(r"^\s*from\s.+\simport\s+\*", source, re.MULTILINE)
    ):
        return None
    return f"module '{module}' has no class '{name}'; {did_you_mean(name, bound)}"


def _bound(table: symtable.SymbolTable) -> Iterator[str]:
    """The names that a module binds at its top level."""
    return (s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported())


def _import(registered: Registered) -> type:
    module, _, name = registered.component.target.partition(":")
    what = f"{registered.kind} '{registered.component.name}' of {registered.origin}"
    interface_name = KINDS[registered.kind].interface
    interface = getattr(importlib.import_module("dreamkit.interfaces"), interface_name)
    try:
        component = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{what}: importing {registered.component.target} failed: {_said(error)}"
        ) from error
    if not (isinstance(component, type) and issubclass(component, interface)):
        raise PluginError(
            f"{what}: {registered.component.target} is no subclass of dreamkit.{interface_name}"
        )
    config = getattr(component, "Config", None)
    if registered.kind != "task" and not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise PluginError(
            f"{what}: {registered.component.target} has no dataclass 'Config', its recipe section"
        )
    return component
