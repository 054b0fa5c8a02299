"""Reads a tree of values into dataclasses, strictly, and finds everything that is wrong with it at once.

A field's annotation says what it takes: None, bool, int, float, str, Path, Literal, a union, list, tuple, dict, Any, or
another dataclass. An int is taken for a float; nothing else is converted. A relative `Path` starts from the folder of
the file it was written in. `__post_init__` of a dataclass may refuse its values with a ValueError.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin

from dreamkit.errors import DreamkitError, PluginError, RecipeProblem, did_you_mean
from dreamkit.recipe.fields import (
    LISTS,
    UNIONS,
    expected_type,
    has_default,
    item_types,
    own_keys,
    unheld_fields,
)
from dreamkit.recipe.places import join, refusals
from dreamkit.recipe.source_keys import SOURCES, given_sources, located, source_problem
from dreamkit.recipe.tree import BROKEN, Broken, Node, describe_value
from dreamkit.storage.paths import written_path

ConfigClass: TypeAlias = Callable[[str, str], type]
NOTHING: Final[Mapping[str, Any]] = types.MappingProxyType({})


class SchemaReader:
    """Turns nodes into values, collecting `problems` and, for every key, in `places`, where it was written.

    What cannot be read is BROKEN. `config_class` returns the `Config` of the component of a kind and a name, or raises
    a PluginError; what names no component is read without. `complete` false: keys may be missing because a file is,
    and are not reported.
    """

    def __init__(self, config_class: ConfigClass | None = None, *, complete: bool = True) -> None:
        self.config_class = config_class
        self.complete = complete
        self.problems: list[RecipeProblem] = []
        self.places: dict[str, str] = {}

    def problem(self, node: Node, key: str, message: str) -> Broken:
        self.problems.append(RecipeProblem(node.where, key or "recipe", message))
        return BROKEN

    def section(
        self, cls: type, node: Node, key: str, *, draft: bool = False, reserved: Sequence[str] = ()
    ) -> Any:
        """An instance of the dataclass `cls`, or BROKEN.

        `draft`: where fields are broken, an instance in which these are None instead. `reserved` keys are known, but
        not to this dataclass.
        """
        self.places[key] = node.where
        if not isinstance(node.value, dict):
            return self._unwanted(dict, node, key)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        try:
            annotations = typing.get_type_hints(cls)
            unheld = list(unheld_fields(cls))
        except Exception as error:  # annotations are code of the plug-in
            return self.problem(
                node, key, f"cannot read the annotations of {cls.__qualname__}: {error}; fix its plug-in"
            )
        if unheld:
            return self.problem(node, key, f"a recipe cannot hold {', '.join(unheld)}; fix its plug-in")
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
        if not any(value is BROKEN for value in values.values()):
            try:
                return cls(**values)
            except (
                Exception,
                SystemExit,
            ) as error:  # the checks of a plug-in's dataclass may fail in any way
                self.problems += refusals(error, key, self.places)
        return _draft(cls, values) if draft else BROKEN

    def value(self, annotation: Any, node: Node, key: str, meta: Mapping[str, Any] = NOTHING) -> Any:
        """What `node` is as `annotation`, or BROKEN. `meta` is the metadata of its field."""
        self.places[key] = node.where
        value, origin, args = node.value, get_origin(annotation), get_args(annotation)
        if value is BROKEN:
            return BROKEN
        if annotation in (Any, object) or (annotation in (dict, list) and isinstance(value, annotation)):
            return self._anything(node, key)
        if origin in UNIONS:
            return self._one_of(annotation, node, key, meta)
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            if "kind" in meta:
                return self._component(annotation, node, key, meta)
            return self.section(annotation, node, key, draft=meta.get("draft", False))
        if origin is Literal and any(value == arg and type(value) is type(arg) for arg in args):
            return value
        if origin in LISTS and isinstance(value, list):
            wanted_types = item_types(annotation, value)
            if len(wanted_types) != len(value):
                return self._unwanted(annotation, node, key)
            pairs = enumerate(zip(wanted_types, value, strict=True))
            items = [self.value(each, item, join(key, index), meta) for index, (each, item) in pairs]
            if any(item is BROKEN for item in items):
                return BROKEN
            return tuple(items) if origin is tuple else items
        if origin in (dict, Mapping) and isinstance(value, dict):
            read = {name: self.value(args[1], item, join(key, name)) for name, item in value.items()}
            return BROKEN if any(item is BROKEN for item in read.values()) else read
        return self._scalar(annotation, node, key, meta)

    def _component(self, cls: type, node: Node, key: str, meta: Mapping[str, Any]) -> Any:
        """A section that names a component, whose other keys are those of the component's `Config`."""
        if not isinstance(node.value, dict):
            return self.section(cls, node, key)
        assert self.config_class is not None, "a reader of components is given their classes"
        kind, own = meta["kind"], own_keys(cls)
        given = {name: item for name, item in node.value.items() if name in own}
        # `config` stands in for the component's own, so that the section's own keys are read like any others.
        section = self.section(
            cls, Node({**given, "config": Node(None, node.where, node.folder)}, node.where, node.folder), key
        )
        name = given.get("name")
        if name is None or not isinstance(name.value, str):
            return BROKEN
        try:
            config_class = self.config_class(kind, name.value)
        except PluginError as error:
            return self.problem(name, join(key, "name"), str(error))
        clash = sorted({f.name for f in dataclasses.fields(config_class)} & set(own))
        if clash:
            return self.problem(
                name,
                key,
                f"the Config of {kind} '{name.value}' has a field '{clash[0]}', a reserved key; fix its plug-in",
            )
        rest = {
            k: self._located(item, join(key, k)) if k in SOURCES else item
            for k, item in node.value.items()
            if k not in own
        }
        config = self.section(config_class, Node(rest, node.where, node.folder), key, reserved=own)
        sources = given_sources(rest)
        if meta.get("sourced") and len(sources) != 1:
            if sources or self.complete:  # else the source may be in the file that is missing
                self.problem(node, key, source_problem(sources))
            return BROKEN
        if section is BROKEN or config is BROKEN:
            return BROKEN
        return dataclasses.replace(section, config=config)

    def _located(self, node: Node, key: str) -> Node:
        try:
            return located(node)
        except DreamkitError as error:
            return Node(self.problem(node, key, str(error)), node.where, node.folder)

    def _scalar(self, annotation: Any, node: Node, key: str, meta: Mapping[str, Any]) -> Any:
        value = node.value
        if isinstance(value, bool) or value is None:
            if annotation is type(value):
                return value
        elif isinstance(value, int | float) and annotation in (float, type(value)):
            return self._number(annotation, value, node, key, meta)
        elif isinstance(value, str) and annotation in (str, Path):
            if annotation is str and not meta.get("path"):
                return value
            try:
                return annotation(written_path(value, node.folder))
            except DreamkitError as error:
                return self.problem(node, key, str(error))
        return self._unwanted(annotation, node, key)

    def _number(self, annotation: type, value: float, node: Node, key: str, meta: Mapping[str, Any]) -> Any:
        least, above, most, below = (meta.get(name) for name in ("least", "above", "most", "below"))
        bounds = [(least, "at least"), (above, "more than"), (most, "at most"), (below, "less than")]
        bound = " and ".join(f"{words} {limit}" for limit, words in bounds if limit is not None)
        if isinstance(value, float) and not math.isfinite(value):
            return self.problem(node, key, f"expected a finite number, got {value}")
        if isinstance(value, int) and abs(value) >= 2**63:
            return self.problem(node, key, f"expected an integer of at most 64 bits, got {value}")
        is_low = (least is not None and value < least) or (above is not None and value <= above)
        is_high = (most is not None and value > most) or (below is not None and value >= below)
        if is_low or is_high:
            return self.problem(node, key, f"expected {bound}, got {value}")
        return annotation(value)

    def _one_of(self, annotation: Any, node: Node, key: str, meta: Mapping[str, Any]) -> Any:
        choices = [choice for choice in get_args(annotation) if choice is not type(None)]
        if node.value is None and len(choices) < len(get_args(annotation)):
            return None
        before = list(self.problems)
        for choice in choices:
            read = self.value(choice, node, key, meta)
            if read is not BROKEN:
                self.problems = before
                return read
        if len(choices) == 1:
            return BROKEN  # and its problem says more than the union's would
        self.problems = before
        return self._unwanted(annotation, node, key)

    def _anything(self, node: Node, key: str) -> Any:
        """A value of any type, in which no number may be infinite."""
        value = node.value
        if isinstance(value, dict):
            read = {name: self.value(Any, item, join(key, name)) for name, item in value.items()}
            return BROKEN if any(item is BROKEN for item in read.values()) else read
        if isinstance(value, list):
            items = [self.value(Any, item, join(key, index)) for index, item in enumerate(value)]
            return BROKEN if any(item is BROKEN for item in items) else items
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._number(type(value), value, node, key, NOTHING)
        return value

    def _unwanted(self, annotation: Any, node: Node, key: str) -> Broken:
        if node.value is BROKEN:
            return BROKEN
        near = ""
        if get_origin(annotation) is Literal and isinstance(node.value, str):
            near = f"; {did_you_mean(node.value, map(str, get_args(annotation)))}"
        return self.problem(
            node, key, f"expected {expected_type(annotation)}, got {describe_value(node.value)}{near}"
        )


def _draft(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance without `cls`'s own checks, in which what is broken is None."""
    draft: Any = object.__new__(cls)
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = values.get(field.name, default)
        object.__setattr__(draft, field.name, None if value is BROKEN else value)
    return draft
