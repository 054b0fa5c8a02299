"""Paths in a recipe, and the keys of a part's section that name the source of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dreamkit.errors import DreamkitError, describe_value
from dreamkit.recipe.interpolations import escape, expand_variables, has_variable
from dreamkit.recipe.tree import Node
from dreamkit.recipe.written import WrittenText, as_written
from dreamkit.storage.paths import written_path
from dreamkit.storage.urls import is_url

SOURCES: Final = ("pretrained", "tokenizer")  # keys that name a folder or a hub model


def read_path(node: Node, *, stored: bool) -> str:
    """Return the path `node` as a string, which starts from its file's folder; its environment variables are expanded.

    A URL has no folder that it could start from.

    `stored`: it comes from a checkpoint. Then a path whose variables are not set is returned as written.

    Raises:
        DreamkitError: an invalid path, or a variable without a default is not set.
    """
    text = str(node.value)
    if not has_variable(text):
        return text if is_url(text) else str(written_path(text, node.folder))
    try:
        expanded = expand_variables(text)
    except DreamkitError as error:
        if stored:
            return WrittenText(text, text)
        raise DreamkitError(f"cannot resolve {describe_value(text)}: {error}") from error
    if is_url(expanded):
        return WrittenText(expanded, text)
    is_absolute = Path(expanded).is_absolute() or expanded.startswith("~")
    written = text if is_absolute else f"{escape(str(node.folder))}/{text}"
    return WrittenText(str(written_path(expanded, node.folder)), written)


def resolve_source(node: Node, *, stored: bool = False) -> Node:
    """Return a source that names a folder as an absolute path, and any other unchanged. `stored` is as in `read_path`.

    It names a folder if it begins like a path (`./`, `../`, `/`, `~`) or the folder exists beside its file.

    Raises:
        DreamkitError: an invalid path, or a source with environment variables that is not a folder: the hub would
            receive their values.
    """
    name = node.value
    if not isinstance(name, str) or not name:
        return node
    path = read_path(node, stored=stored)
    if has_variable(name):
        if not stored and not Path(path).is_dir():
            raise DreamkitError(
                f"expected a folder, got {describe_value(name)}; a name of the hub takes no environment variable, "
                "because the hub would receive its value"
            )
        return Node(path, node.where, node.folder)
    if name.startswith(("./", "../", "/", "~")) or name in (".", "..") or Path(path).is_dir():
        path = str(Path(path).resolve())
        return Node(WrittenText(path, as_written(path)), node.where, node.folder)
    return node


def stored_source(name: str) -> str:
    """Return the source that a checkpoint holds as `name`, with the values of its environment variables."""
    return read_path(Node(name, "", Path.cwd()), stored=True) if has_variable(name) else name


def weight_sources(section: Mapping[str, Node]) -> dict[str, Node]:
    """Return those of `pretrained` and `config` that a section sets."""
    return {
        key: section[key]
        for key in ("pretrained", "config")
        if key in section and section[key].value is not None
    }


def source_problem(sources: Mapping[str, Node]) -> str:
    """Return the error message about no source, or about two; a section needs exactly one."""
    if not sources:
        return "missing 'pretrained' or 'config': name weights or configure random ones"
    places = " and ".join(f"'{key}' ({item.where})" for key, item in sources.items())
    return f"expected one source, got {places}; set one of them to null"
