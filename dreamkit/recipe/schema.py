"""Strict reader of recipe sections: it turns a tree of values into dataclasses and collects every problem.

A field's annotation is its type: None, bool, int, float, str, Path, Literal, a union, list, tuple, dict, Any, or
another dataclass. An int is read as a float if a float is expected; nothing else is converted. A relative `Path`
starts from the folder of its file. `__post_init__` of a dataclass may reject its values with a ValueError.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin

from dreamkit.errors import (
    DreamkitError,
    PluginError,
    RecipeProblem,
    describe_error,
    describe_value,
    did_you_mean,
    excerpt,
    near_hint,
    surrogate_problem,
)
from dreamkit.recipe.fields import (
    LISTS,
    UNIONS,
    expected_type,
    has_default,
    item_types,
    section_keys,
    unsupported_fields,
)
from dreamkit.recipe.interpolations import has_variable
from dreamkit.recipe.places import config_problems, join
from dreamkit.recipe.quotes import braces_hint
from dreamkit.recipe.source_keys import SOURCES, read_path, resolve_source, source_problem, weight_sources
from dreamkit.recipe.tree import BROKEN, Broken, Node
from dreamkit.recipe.written import WrittenText, as_path
from dreamkit.storage.urls import Location, Url, url_problem

ConfigClass: TypeAlias = Callable[[str, str], type]
_CONTAINERS: Final[Mapping[type, Any]] = {dict: dict[str, Any], list: list[Any]}
# A size in the `config` of a part; a square matrix of this width would have 10^16 weights.
MAX_SIZE: Final = 10**8
FEW_KEYS: Final = 6  # of a section, that a message about another value lists
_NO_METADATA: Final[Mapping[str, Any]] = types.MappingProxyType({})
_BOUNDS: Final[Mapping[str, str]] = {
    "least": "at least",
    "above": "more than",
    "most": "at most",
    "below": "less than",
}


class SchemaReader:
    """Reader of nodes as values. It collects `problems`, and the place of every key in `places`.

    `config_class(kind, name)` returns the `Config` of a component, or raises a PluginError.
    `complete=False`: a file could not be read, so missing keys are not reported.
    `stored=True`: the values come from a checkpoint. An environment variable that is not set here stays as written.
    A value with a problem is read as BROKEN.
    """

    def __init__(
        self, config_class: ConfigClass | None = None, *, complete: bool = True, stored: bool = False
    ) -> None:
        self.config_class = config_class
        self.complete = complete
        self.stored = stored
        self.problems: list[RecipeProblem] = []
        self.places: dict[str, str] = {}

    def problem(self, node: Node, key: str, message: str) -> Broken:
        self.problems.append(RecipeProblem(node.where, key or "recipe", message))
        return BROKEN

    def section(
        self, cls: type, node: Node, key: str, *, draft: bool = False, reserved: Sequence[str] = ()
    ) -> Any:
        """Read `node` as the dataclass `cls`; return BROKEN if it has problems.

        `draft`: in that case return an instance whose broken fields are None. `reserved` keys belong to another
        dataclass and are not unknown.
        """
        self.places[key] = node.where
        if not isinstance(node.value, dict):
            return self._mismatch(cls if len(section_keys(cls)) <= FEW_KEYS else dict, node, key)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init and not f.metadata.get("inner")}
        try:
            annotations = typing.get_type_hints(cls)
            unsupported = list(unsupported_fields(cls))
        except Exception as error:  # annotations are code of the plug-in
            return self.problem(
                node,
                key,
                f"cannot read the annotations of {cls.__qualname__}: {describe_error(error)}; fix its plug-in",
            )
        if unsupported:
            return self.problem(node, key, f"a recipe cannot hold {', '.join(unsupported)}; fix its plug-in")
        values: dict[str, Any] = {}
        for name, item in node.value.items():
            path = join(key, name)
            if name in fields:
                values[name] = self.value(annotations[name], item, path, fields[name].metadata)
            elif name not in reserved:
                self.problem(item, path, f"unknown key '{name}'; {did_you_mean(name, [*fields, *reserved])}")
        for name, field in fields.items():
            if name not in values and not has_default(field):
                values[name] = BROKEN
                if self.complete:
                    self.problem(
                        node, join(key, name), f"missing; expected {expected_type(annotations[name])}"
                    )
        if not _any_broken(values.values()):
            try:
                return cls(**values)
            except (Exception, SystemExit) as error:  # `__post_init__` is code of the plug-in
                self.problems += config_problems(error, key, self.places)
        return _draft(cls, values) if draft else BROKEN

    def value(self, annotation: Any, node: Node, key: str, metadata: Mapping[str, Any] = _NO_METADATA) -> Any:
        """Read `node` as type `annotation`; return BROKEN on a mismatch. `metadata` is that of its field."""
        self.places[key] = node.where
        value = node.value
        if value is BROKEN:
            return BROKEN
        if _misuses_variable(annotation, value, metadata):
            return self.problem(
                node,
                key,
                f"expected a value without environment variables, got {describe_value(value)}; a checkpoint would hold "
                "it, so only paths may use them",
            )
        if problem := url_problem(value) if _takes_path(annotation, metadata) else None:
            return self.problem(node, key, problem)
        if annotation in (Any, object) or (annotation in (dict, list) and isinstance(value, annotation)):
            annotation = _CONTAINERS.get(type(value), type(value))
        origin, args = get_origin(annotation), get_args(annotation)
        if origin in UNIONS and annotation != Location:
            return self._union(annotation, node, key, metadata)
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            if "kind" in metadata:
                return self._component(annotation, node, key, metadata)
            return self.section(annotation, node, key, draft=metadata.get("draft", False))
        if origin is Literal and any(value == arg and type(value) is type(arg) for arg in args):
            return value
        if origin in LISTS and isinstance(value, list):
            types_of_items = item_types(annotation, len(value))
            if len(types_of_items) != len(value):
                return self._mismatch(annotation, node, key)
            pairs = enumerate(zip(types_of_items, value, strict=True))
            items = [self.value(each, item, join(key, index), metadata) for index, (each, item) in pairs]
            if _any_broken(items):
                return BROKEN
            return tuple(items) if origin is tuple else items
        if origin in (dict, Mapping) and isinstance(value, dict):
            # free sections of parts describe networks
            bound = {"most": MAX_SIZE} if key.startswith("model.") else _NO_METADATA
            entries = {
                name: self.value(args[1], item, join(key, name), bound) for name, item in value.items()
            }
            return BROKEN if _any_broken(entries.values()) else entries
        return self._scalar(annotation, node, key, metadata)

    def _component(self, cls: type, node: Node, key: str, metadata: Mapping[str, Any]) -> Any:
        """Read a section that names a component; its other keys are the fields of the component's `Config`."""
        if isinstance(node.value, str):
            message = f"expected a section with name, got {describe_value(node.value)}"
            return self.problem(node, key, f"{message}; write {{name: {excerpt(node.value)}}}")
        if not isinstance(node.value, dict):
            return self.section(cls, node, key)
        assert self.config_class is not None, "a reader of components has their classes"
        kind, own_keys = metadata["kind"], section_keys(cls)
        own = {name: item for name, item in node.value.items() if name in own_keys}
        section = self.section(cls, Node(own, node.where, node.folder), key)
        name = own.get("name")
        if name is None or not isinstance(name.value, str) or has_variable(name.value):
            return BROKEN
        try:
            config_class = self.config_class(kind, name.value)
        except PluginError as error:
            return self.problem(name, join(key, "name"), str(error))
        clash = sorted({f.name for f in dataclasses.fields(config_class)} & set(own_keys))
        if clash:
            return self.problem(
                name,
                key,
                f"the Config of {kind} '{name.value}' has a field '{clash[0]}', a reserved key; fix its plug-in",
            )
        rest = {
            inner: self._source(item, join(key, inner)) if inner in SOURCES else item
            for inner, item in node.value.items()
            if inner not in own_keys
        }
        config = self.section(config_class, Node(rest, node.where, node.folder), key, reserved=own_keys)
        sources = weight_sources(rest)
        if metadata.get("sourced") and len(sources) != 1:
            if sources or self.complete:  # otherwise the unread file may name the source
                self.problem(node, key, source_problem(sources))
            return BROKEN
        if section is BROKEN or config is BROKEN:
            return BROKEN
        return dataclasses.replace(section, config=config)

    def _source(self, node: Node, key: str) -> Node:
        try:
            return resolve_source(node, stored=self.stored)
        except DreamkitError as error:
            return Node(self.problem(node, key, str(error)), node.where, node.folder)

    def _scalar(self, annotation: Any, node: Node, key: str, metadata: Mapping[str, Any]) -> Any:
        value = node.value
        if isinstance(value, bool) or value is None:
            if annotation is type(value):
                return value
        elif isinstance(value, int | float) and annotation in (float, type(value)):
            return self._number(annotation, value, node, key, metadata)
        elif isinstance(value, str) and annotation in (str, Path, Url, Location):
            if annotation is str and not metadata.get("path"):
                problem = surrogate_problem(value)
                return value if problem is None else self.problem(node, key, problem)
            try:
                return as_path(annotation, read_path(node, stored=self.stored))
            except DreamkitError as error:
                return self.problem(node, key, str(error))
        return self._mismatch(annotation, node, key)

    def _number(
        self, annotation: type, value: float, node: Node, key: str, metadata: Mapping[str, Any]
    ) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return self.problem(node, key, f"expected a finite number, got {value}")
        if isinstance(value, int) and abs(value) >= 2**63:
            return self.problem(
                node, key, f"expected an integer of at most 64 bits, got {excerpt(str(value))}"
            )
        least, above, most, below = (metadata.get(name) for name in _BOUNDS)
        is_low = (least is not None and value < least) or (above is not None and value <= above)
        is_high = (most is not None and value > most) or (below is not None and value >= below)
        if is_low or is_high:
            bounds = [f"{words} {metadata[name]}" for name, words in _BOUNDS.items() if name in metadata]
            return self.problem(node, key, f"expected {' and '.join(bounds)}, got {value}")
        return annotation(value)

    def _union(self, annotation: Any, node: Node, key: str, metadata: Mapping[str, Any]) -> Any:
        choices = [choice for choice in get_args(annotation) if choice is not type(None)]
        if node.value is None and len(choices) < len(get_args(annotation)):
            return None
        choices = _with_locations(choices)
        before = list(self.problems)
        problems: dict[Any, list[RecipeProblem]] = {}
        for choice in choices:
            self.problems = list(before)
            value = self.value(choice, node, key, metadata)
            if value is not BROKEN:
                self.problems = before
                return value
            problems[choice] = self.problems
        alike = choices if len(choices) == 1 else [each for each in choices if _is_alike(each, node.value)]
        if len(alike) == 1:
            self.problems = problems[alike[0]]  # more exact than a problem of the union
            return BROKEN
        self.problems = before
        return self._mismatch(annotation, node, key)

    def _mismatch(self, annotation: Any, node: Node, key: str) -> Broken:
        if node.value is BROKEN:
            return BROKEN
        hint = ""
        if get_origin(annotation) is Literal and isinstance(node.value, str):
            hint = near_hint(node.value, map(str, get_args(annotation)))
        choices = get_args(annotation) if get_origin(annotation) in UNIONS else (annotation,)
        if isinstance(node.value, str) and any(get_origin(choice) in LISTS for choice in choices):
            hint = f"; write [{excerpt(node.value)}]"
        elif Path in choices:
            hint = excerpt(braces_hint(node.plain()), 200)
        if isinstance(node.value, int | float) and (Path in choices or str in choices):
            hint = "; put it in quotes"
        return self.problem(
            node, key, f"expected {expected_type(annotation)}, got {describe_value(node.value)}{hint}"
        )


def _is_alike(annotation: Any, value: object) -> bool:
    """Return True if a value that is not of a type has its form: a list, a section, a text or a number."""
    origin = get_origin(annotation)
    if isinstance(value, list):
        return annotation is list or origin in LISTS
    if isinstance(value, dict):
        return (
            annotation in (dict, Mapping) or origin in (dict, Mapping) or dataclasses.is_dataclass(annotation)
        )
    if isinstance(value, str):
        return annotation in (str, Path, Url, Location) or origin is Literal
    return annotation is type(value)


def _misuses_variable(annotation: Any, value: object, metadata: Mapping[str, Any]) -> bool:
    """Return True if `value` names an environment variable, and its field holds no path."""
    if not isinstance(value, str) or isinstance(value, WrittenText) or not has_variable(value):
        return False
    return not _takes_path(annotation, metadata)


def _takes_path(annotation: Any, metadata: Mapping[str, Any]) -> bool:
    """Return True if a field of this type holds paths or URLs."""
    return bool(metadata.get("path")) or any(
        each in (Path, Url) for each in (annotation, *get_args(annotation))
    )


def _with_locations(choices: list[Any]) -> list[Any]:
    """Return the types of a union in which a path or a URL is one type: its text decides."""
    if Path not in choices or Url not in choices:
        return choices
    return [Location, *(choice for choice in choices if choice not in (Path, Url))]


def _any_broken(values: Iterable[Any]) -> bool:
    return any(value is BROKEN for value in values)


def _draft(cls: type, values: Mapping[str, Any]) -> Any:
    """Return an instance of `cls` without running its checks; broken fields are None."""
    draft: Any = object.__new__(cls)
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = values.get(field.name, default)
        object.__setattr__(draft, field.name, None if value is BROKEN else value)
    return draft
