"""The keys of a part's section that say where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dreamkit.recipe.tree import Node
from dreamkit.storage.paths import written_path

# keys that name a folder where there is one, and else a hub name
SOURCES: Final = ("pretrained", "tokenizer")


def located(node: Node) -> Node:
    """A source that is a folder, beside the file it is written in or by its form, as an absolute path.

    Raises:
        DreamkitError: a path that cannot be one.
    """
    name = node.value
    if not isinstance(name, str) or not name:
        return node
    path = written_path(name, node.folder)
    if name.startswith(("./", "../", "/", "~")) or name in (".", "..") or path.is_dir():
        return Node(str(path.resolve()), node.where, node.folder)
    return node


def given_sources(section: Mapping[str, Node]) -> dict[str, Node]:
    """Return those of `pretrained` and `config` that a section gives."""
    return {
        key: section[key]
        for key in ("pretrained", "config")
        if key in section and section[key].value is not None
    }


def source_problem(sources: Mapping[str, Node]) -> str:
    """Return what is wrong with sources that are none, or two, where a section wants exactly one."""
    if not sources:
        return "missing 'pretrained' or 'config': name weights or configure random ones"
    places = " and ".join(f"'{key}' ({item.where})" for key, item in sources.items())
    return f"expected one source, got {places}; set one of them to null"
