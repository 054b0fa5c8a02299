"""Types of Arrow columns that hold images, texts, or lists of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

import pyarrow as pa
import pyarrow.types as kinds

from dreamkit import count, did_you_mean, excerpt, printable

Kind: TypeAlias = Literal["image", "caption", "images", "texts"]


def column_problem(schema: pa.Schema, columns: Mapping[str, Kind]) -> str | None:
    """Return why a schema lacks the columns, each of its kind, or None."""
    for name, kind in columns.items():
        found = schema.get_all_field_indices(name)
        if not found:
            return f"missing column '{printable(name)}'; {did_you_mean(name, schema.names[:100])}"
        if len(found) > 1:
            return f"expected one column '{printable(name)}', got {count(len(found), 'column')} of this name"
        expected, accepts = _KINDS[kind]
        actual = schema.field(found[0]).type
        if not accepts(actual):
            return f"column '{printable(name)}': expected {expected}, got {excerpt(str(actual))}"
    return None


def is_bytes(kind: pa.DataType) -> bool:
    """Return True if a type has bytes alone, so that no value of it is a path."""
    kind = _plain(kind)
    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if kinds.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def _is_image(kind: pa.DataType) -> bool:
    """Return True for bytes, texts, and the struct of bytes and path that is the feature Image of `datasets`."""
    if not kinds.is_struct(kind):
        return is_bytes(kind) or _is_text(kind)
    fields = {field.name: field.type for field in kind}
    accepted = {"bytes": is_bytes, "path": _is_text}
    # A field without any value has the type null.
    used = {name for name in accepted if name in fields and not kinds.is_null(fields[name])}
    return bool(used) and all(accepted[name](fields[name]) for name in used)


def _list_of(accepts: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: (kinds.is_list(kind) or kinds.is_large_list(kind)) and accepts(kind.value_type)


_IMAGE: Final = "bytes, a path, or a struct of bytes and path"
_KINDS: Final[Mapping[Kind, tuple[str, Callable[[pa.DataType], bool]]]] = {
    "image": (_IMAGE, _is_image),
    "images": (f"a list of {_IMAGE}", _list_of(_is_image)),
    "caption": ("a string or a list of strings", lambda kind: _is_text(kind) or _list_of(_is_text)(kind)),
    "texts": ("a list of strings", _list_of(_is_text)),
}
