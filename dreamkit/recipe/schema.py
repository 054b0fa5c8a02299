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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from dreamkit.errors import ConfigError, DreamkitError, RecipeProblem, did_you_mean
from dreamkit.recipe.tree import BROKEN, Broken, Node, said
from dreamkit.storage.paths import written_path

NOTHING: Final[Mapping[str, Any]] = types.MappingProxyType({})
_UNIONS = (typing.Union, types.UnionType)
_LISTS = (list, tuple, Sequence)
_SCALARS: Final[Mapping[Any, str]] = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


def setting(default: Any = MISSING, **metadata: Any) -> Any:
    """A dataclass field with bounds (`least`, `above`, `most`, `below`), text that is a path (`path=True`), or no key
    of its own (`inner=True`)."""
    return dataclasses.field(default=default, metadata=metadata)


class SchemaReader:
    """Turns nodes into values, collecting `problems` and, for every key, in `places`, where it was written.

    What cannot be read is BROKEN. `complete` false: keys may be missing because a file is, and are not reported.
    """

    def __init__(self, *, complete: bool = True) -> None:
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
            unheld = list(_unheld(cls))
        except Exception as error:  # annotations are code of the plug-in
            return self.problem(node, key, f"the annotations of {cls.__qualname__} cannot be read: {error}")
        if unheld:
            return self.problem(
                node, key, f"{' and '.join(unheld)}, which no recipe can hold; its plug-in needs mending"
            )
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
                    self.problem(node, join(key, name), f"missing; {wanted(annotations[name])} is wanted")
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
        if origin in _UNIONS:
            return self._one_of(annotation, node, key, meta)
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return self.nested(annotation, node, key, meta)
        if origin is Literal and any(value == arg and type(value) is type(arg) for arg in args):
            return value
        if origin in _LISTS and isinstance(value, list):
            wanted_types = _item_types(annotation, value)
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

    def nested(self, cls: type, node: Node, key: str, meta: Mapping[str, Any]) -> Any:
        """A dataclass inside another."""
        return self.section(cls, node, key)

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
            return self.problem(node, key, f"{value} found, but a finite number is wanted")
        if isinstance(value, int) and abs(value) >= 2**63:
            return self.problem(
                node, key, f"{value} found, but a whole number of less than 64 bits is wanted"
            )
        is_low = (least is not None and value < least) or (above is not None and value <= above)
        is_high = (most is not None and value > most) or (below is not None and value >= below)
        if is_low or is_high:
            return self.problem(node, key, f"{value} found, but {bound} is wanted")
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
        return self.problem(node, key, f"{said(node)} found, but {wanted(annotation)} is wanted{near}")


def wanted(annotation: Any) -> str:
    """What a field takes, in an error message."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in _UNIONS:
        return " or ".join(wanted(arg) for arg in args)
    if origin in _LISTS:
        each = [arg for arg in args if arg is not Ellipsis]
        return f"a list of {', '.join(wanted(arg) for arg in each)}"
    if annotation in (dict, Mapping) or origin in (dict, Mapping):
        return "a section"
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return f"a section with {', '.join(own_keys(annotation))}"
    if annotation is list:
        return "a list"
    return _SCALARS.get(annotation, f"{annotation}, which no recipe can hold,")


def own_keys(cls: type) -> list[str]:
    """The keys of a section that is read into the dataclass `cls`."""
    return [f.name for f in dataclasses.fields(cls) if f.init and not f.metadata.get("inner")]


def refusals(error: BaseException, key: str, places: Mapping[str, str]) -> list[RecipeProblem]:
    """What a part refuses of the section `key`, each at the key it is about."""
    whole = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    refused = error.problems if isinstance(error, ConfigError) else {"": whole or type(error).__name__}
    found = [(join(key, inner), message) for inner, message in refused.items()]
    return [RecipeProblem(place(places, inner), inner or "recipe", message) for inner, message in found]


def place(places: Mapping[str, str], key: str) -> str:
    """Where `key`, or else the section around it, was written: `file:line`."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, "recipe")


def join(*steps: object) -> str:
    """A dotted key path."""
    return ".".join(str(step) for step in steps if step != "")


def has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _unheld(cls: type, above: tuple[type, ...] = ()) -> Iterator[str]:
    """The fields of a dataclass, and of those in it, that take what is not read here. `above` are those it is in."""
    annotations = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        annotation = annotations[field.name]
        leaves = list(_leaves(annotation))
        if None in leaves:
            said = annotation.__qualname__ if isinstance(annotation, type) else annotation
            yield f"{cls.__qualname__}.{field.name} takes {said}"
        for leaf in leaves:
            if leaf not in (None, cls, *above):
                yield from _unheld(leaf, (cls, *above))


def _leaves(annotation: Any) -> Iterator[Any]:
    """The dataclasses in an annotation, and None for each thing in it that is not read here."""
    origin, args = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
    elif origin in _UNIONS or (origin in _LISTS and args):
        for each in args:
            if each is not Ellipsis:
                yield from _leaves(each)
    elif origin in (dict, Mapping) and args:
        yield from _leaves(args[1])
        if args[0] not in (str, Any, object):
            yield None
    elif origin is Literal:
        if not all(type(each) in _SCALARS for each in args):
            yield None
    elif annotation not in (Any, object, dict, list, *_SCALARS):
        yield None


def _item_types(annotation: Any, items: Sequence[object]) -> Sequence[Any]:
    """The annotation of each item; of another length than `items` where that is wrong."""
    args = get_args(annotation)
    is_fixed = get_origin(annotation) is tuple and Ellipsis not in args
    return args if is_fixed else args[:1] * len(items)


def _draft(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance without `cls`'s own checks, in which what is broken is None."""
    draft: Any = object.__new__(cls)
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = values.get(field.name, default)
        object.__setattr__(draft, field.name, None if value is BROKEN else value)
    return draft
