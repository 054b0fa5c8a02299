"""Fields of sections: how they are declared, and what their annotations take."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

UNIONS = (typing.Union, types.UnionType)
LISTS = (list, tuple, Sequence)
_SCALARS: Final[Mapping[Any, str]] = {
    type(None): "null",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
}


def setting(default: Any = MISSING, **metadata: Any) -> Any:
    """Declare a dataclass field, with metadata for the reader of recipes.

    Numbers have bounds (`least`, `above`, `most`, `below`), and text may be a path (`path=True`).
    `draft=True`: a section with problems is read as far as it can be. `kind=...`: a section names a component of this
    kind, and with `sourced=True` exactly one source of weights. `inner=True`: the field, which has no key of its own,
    is that component's `Config`, whose keys stand beside those of the section.
    """
    return dataclasses.field(default=default, metadata=metadata)


def expected_type(annotation: Any) -> str:
    """Return the type that a field takes, as an error message names it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in UNIONS:
        return " or ".join(expected_type(arg) for arg in args)
    if origin in LISTS:
        each = [arg for arg in args if arg is not Ellipsis]
        return f"a list of {', '.join(expected_type(arg) for arg in each)}"
    if annotation in (dict, Mapping) or origin in (dict, Mapping):
        return "a section"
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return f"a section with {', '.join(own_keys(annotation))}"
    if annotation is list:
        return "a list"
    return _SCALARS.get(annotation, "a value")


def own_keys(cls: type) -> list[str]:
    """The keys of a section that is read into the dataclass `cls`."""
    return [f.name for f in dataclasses.fields(cls) if f.init and not f.metadata.get("inner")]


def has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def unheld_fields(cls: type, above: tuple[type, ...] = ()) -> Iterator[str]:
    """The fields of a dataclass, and of those in it, that take what is not read here. `above` are those it is in."""
    annotations = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        annotation = annotations[field.name]
        leaves = list(_leaves(annotation))
        if None in leaves:
            type_name = annotation.__qualname__ if isinstance(annotation, type) else annotation
            yield f"{cls.__qualname__}.{field.name} ({type_name})"
        for leaf in leaves:
            if leaf not in (None, cls, *above):
                yield from unheld_fields(leaf, (cls, *above))


def _leaves(annotation: Any) -> Iterator[Any]:
    """The dataclasses in an annotation, and None for each thing in it that is not read here."""
    origin, args = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        yield annotation
    elif origin in UNIONS or (origin in LISTS and args):
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


def item_types(annotation: Any, items: Sequence[object]) -> Sequence[Any]:
    """The annotation of each item; of another length than `items` where that is wrong."""
    args = get_args(annotation)
    is_fixed = get_origin(annotation) is tuple and Ellipsis not in args
    return args if is_fixed else args[:1] * len(items)
