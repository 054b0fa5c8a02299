"""The keys of a part's section that name the source of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dreamkit.recipe.tree import Node
from dreamkit.storage.paths import written_path

SOURCES: Final = ("pretrained", "tokenizer")  # keys that name a folder or a hub model


def resolve_source(node: Node) -> Node:
    """Return a source that names a folder as an absolute path, and any other unchanged.

    It names a folder if it begins like a path (`./`, `../`, `/`, `~`) or the folder exists beside its file.

    Raises:
        DreamkitError: an invalid path.
    """
    name = node.value
    if not isinstance(name, str) or not name:
        return node
    path = written_path(name, node.folder)
    if name.startswith(("./", "../", "/", "~")) or name in (".", "..") or path.is_dir():
        return Node(str(path.resolve()), node.where, node.folder)
    return node


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
