"""Finds the installed plug-ins, keeps broken ones from stopping the others, and hands out components by name.

Every plug-in gets a plug-in manager of its own, so that nothing one does can reach another. What is wrong with
one is a `Problem`: listed by `dreamkit plugins`, and repeated when a name is asked for that nobody gives.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pluggy

from dreamkit.errors import PluginError, did_you_mean
from dreamkit.registry import hookspecs
from dreamkit.registry.hookspecs import ENTRY_POINT_GROUP, PROJECT, Component
from dreamkit.storage.packages import find_spec, package_folder

ALLOW_LIST = "DREAMKIT_PLUGINS"


@dataclass(frozen=True)
class Kind:
    """The hook that gives components of one kind, and the class of `dreamkit.parts` they derive from."""

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
                message = _clash(f"{kind} '{name}'", each.origin, {other.origin for other in given})
                problems.append(Problem(each.entry_point, each.origin, message))
        for name, shipped in self._recipes.items():
            for _, entry_point in shipped if len(shipped) > 1 else ():
                everyone = {origin(other) for _, other in shipped}
                message = _clash(f"recipe '{name}'", origin(entry_point), everyone)
                problems.append(Problem(entry_point.name, origin(entry_point), message))
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
        return _import(given[0])

    def recipes(self) -> Mapping[str, Path]:
        """The shipped recipes by name, such as `dreamllm/paper/stage2`."""
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
            self._problem(f"{doing} failed: {_said(error)}")

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
            wrong = _wrong_name(component.name) or _wrong_target(component.target)
            if wrong:
                self._problem(f"{kind} {component.name!r}: {wrong}")
                continue
            self.components.append(
                Registered(component, kind, distribution.name, distribution.version, self.entry_point.name)
            )

    def _add_recipes(self, place: object) -> None:
        package, _, folder = str(place).partition(":")
        try:
            root = package_folder(package, folder).resolve()
        except LookupError as error:
            self._problem(f"dreamkit_recipes returned {place!r}, but {error.args[0]}")
            return
        for path in sorted(root.rglob("*.yaml")):
            name = path.relative_to(root).with_suffix("").as_posix()
            self.recipes.append((name, path, self.entry_point))


def distributions() -> set[str]:
    """The names of all installed distributions that have plug-ins, whether these work or not."""
    return {
        entry_point.dist.name for entry_point in entry_points(group=ENTRY_POINT_GROUP) if entry_point.dist
    }


def origin(entry_point: EntryPoint) -> str:
    """`distribution version` of an entry point."""
    distribution = entry_point.dist
    return "unknown" if distribution is None else f"{distribution.name} {distribution.version}"


def _is_component(given: object) -> bool:
    return isinstance(given, Component) and all(isinstance(v, str) for v in dataclasses.astuple(given))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _clash(what: str, mine: str, everyone: Collection[str]) -> str:
    """Why `what` is not usable, to the distribution `mine` of all that give it."""
    if others := ", ".join(sorted({*everyone} - {mine})):
        return f"{what} is also given by {others}; uninstall one of them"
    return f"{what} is given more than once; remove one"


def _wrong_name(name: str) -> str | None:
    if name and name.isprintable() and " " not in name:
        return None
    return "no recipe can write this name; make it of letters, digits and '-'"


def _wrong_target(target: str) -> str | None:
    """What is wrong with a `"module:Class"`, found by reading the module's source instead of importing it."""
    module, _, name = target.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", target):
        return f"its target {target!r} is not of the form 'module:Class'"
    try:
        loader = find_spec(module).loader
        source = loader.get_source(module) if isinstance(loader, SourceFileLoader) else None
        tree = ast.parse(source or "")
    except (ImportError, SyntaxError, ValueError) as error:
        return f"its class {target} cannot be found: {_said(error)}"
    # A compiled module, and one that makes names at run time, can only be asked by importing it, which `get` does.
    if source is None or re.search(r"\b(globals|locals|vars|exec|__getattr__)\b|\bimport\s*\(?\s*\*", source):
        return None
    bound = defaultdict(list)
    for bound_name, node in _bindings(tree):
        bound[bound_name].append(node)
    if name not in bound:
        return f"module '{module}' has no class '{name}'; {did_you_mean(name, bound)}"
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    if all(isinstance(node, functions) and not node.decorator_list for node in bound[name]):
        return f"'{name}' of module '{module}' is a function, but a class is wanted"
    return None


def _bindings(tree: ast.AST, *, top: bool = True) -> Iterator[tuple[str, ast.AST]]:
    """The names that a module binds at its top level, and what binds each."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Global(names=names):
                yield from ((name, node) for name in names)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name) if (
                top
            ):
                yield name, node
            case ast.alias(name=name, asname=asname) if top:
                yield asname or name.partition(".")[0], node
            case ast.Name(id=name, ctx=ast.Store()) if top:
                yield name, node
        is_scope = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda))
        yield from _bindings(node, top=top and not is_scope)


def _import(registered: Registered) -> type:
    module, _, name = registered.component.target.partition(":")
    what = f"{registered.kind} '{registered.component.name}' of {registered.origin}"
    interface_name = KINDS[registered.kind].interface
    interface = getattr(importlib.import_module("dreamkit"), interface_name)
    try:
        component = getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(
            f"{what}: importing {registered.component.target} failed: {_said(error)}"
        ) from error
    if not (isinstance(component, type) and issubclass(component, interface)):
        raise PluginError(
            f"{what}: {registered.component.target} is no subclass of dreamkit.{interface_name}"
        )
    if abstract := ", ".join(sorted(getattr(component, "__abstractmethods__", ()))):
        raise PluginError(
            f"{what}: {registered.component.target} lacks {abstract}; implement what is missing"
        )
    config = getattr(component, "Config", None)
    if registered.kind != "task" and not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise PluginError(
            f"{what}: {registered.component.target} has no dataclass 'Config', its recipe section"
        )
    return component
