"""Dataclass fields of recipe sections: their declaration and the types that a recipe can hold."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from dreamkit.storage.urls import Url

UNIONS = (typing.Union, types.UnionType)
LISTS = (list, tuple, Sequence)
_SCALARS: Final[Mapping[Any, tuple[str, str]]] = {  # one, and several
    type(None): ("null", "nulls"),
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    Url: ("a URL", "URLs"),
}
_SUPPORTED: Final = (*_SCALARS, Any, object, dict, list)


def setting(default: Any = MISSING, **metadata: Any) -> Any:
    """Declare a dataclass field, with metadata for the recipe reader.

    `least`, `above`, `most`, `below`: bounds of a number.
    `path=True`: the string is a path.
    `draft=True`: if the section has problems, its valid fields are read all the same.
    `kind=...`: the section names a component of this kind. `sourced=True`: it also has exactly one source of weights.
    `inner=True`: the field holds that component's `Config`. It has no key itself; the fields of `Config` are keys.
    """
    return dataclasses.field(default=default, metadata=metadata)


def expected_type(annotation: Any, *, several: bool = False) -> str:
    """Return the type that a field takes, in the words of an error message; `several` values are in the plural."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"{'any' if several else 'one'} of {', '.join(map(str, args))}"
    if origin in UNIONS:
        return _alternatives([expected_type(arg, several=several) for arg in args])
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return f"{'sections' if several else 'a section'} with {', '.join(section_keys(annotation))}"
    if origin in LISTS or annotation is list:
        if len(args) > 1 and len({*args}) == 1:
            return "lists" if several else f"a list of {len(args)} {expected_type(args[0], several=True)}"
        items = [arg for arg in args if arg is not Ellipsis]
        words = [expected_type(item, several=len(items) == 1) for item in items]
        return "lists" if several else " of ".join(filter(None, ("a list", ", ".join(words))))
    if annotation in (dict, Mapping) or origin in (dict, Mapping):
        values = "" if not args or args[1] in (Any, object) else expected_type(args[1], several=True)
        return "sections" if several else " of ".join(filter(None, ("a section", values)))
    return _SCALARS.get(annotation, ("a value", "values"))[several]


def _alternatives(words: Sequence[str]) -> str:
    """Return words as in "a string, an integer or a section"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def section_keys(cls: type) -> list[str]:
    """Return the keys of a section that is read into the dataclass `cls`."""
    return [f.name for f in dataclasses.fields(cls) if f.init and not f.metadata.get("inner")]


def has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def unsupported_fields(cls: type, outer: tuple[type, ...] = ()) -> Iterator[str]:
    """Yield each field of `cls`, and of the dataclasses in it, whose type a recipe cannot hold.

    `outer` are the dataclasses around `cls`.
    """
    annotations = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        annotation = annotations[field.name]
        leaves = list(_leaf_types(annotation))
        nested = [leaf for leaf in leaves if isinstance(leaf, type) and dataclasses.is_dataclass(leaf)]
        if any(leaf not in (*nested, *_SUPPORTED) for leaf in leaves):
            type_name = annotation.__qualname__ if isinstance(annotation, type) else annotation
            yield f"{cls.__qualname__}.{field.name} ({type_name})"
        for inner in nested:
            if inner not in (cls, *outer):
                yield from unsupported_fields(inner, (cls, *outer))


def _leaf_types(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation, without the unions, lists and dicts around them."""
    origin, args = get_origin(annotation), get_args(annotation)
    if args and (origin in UNIONS or origin in LISTS):
        inner: Iterable[Any] = (arg for arg in args if arg is not Ellipsis)
    elif args and origin in (dict, Mapping) and args[0] in (str, Any, object):
        inner = args[1:]
    elif origin is Literal:
        inner = map(type, args)
    else:
        yield annotation
        return
    for each in inner:
        yield from _leaf_types(each)


def item_types(annotation: Any, count: int) -> Sequence[Any]:
    """Return the types of the items of a list annotation: `count` equal ones, or those of a fixed tuple."""
    args = get_args(annotation)
    is_fixed = get_origin(annotation) is tuple and Ellipsis not in args
    return args if is_fixed else args[:1] * count
