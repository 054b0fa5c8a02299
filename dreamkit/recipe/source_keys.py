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


def source_problem(section: Mapping[str, Node], *, complete: bool) -> str | None:
    """Return what is wrong with the sources of a section's weights, of which there is exactly one; None: nothing.

    `complete` false: a source may be missing because a file is, and is not reported.
    """
    given = {k: section[k] for k in ("pretrained", "config") if k in section and section[k].value is not None}
    if len(given) == 2:
        places = " and ".join(f"'{k}' ({item.where})" for k, item in given.items())
        return f"{places} found, but only one is wanted; set the other to null"
    if not given and complete:
        return "neither 'pretrained' nor 'config' found; name the weights, or describe random ones"
    return None
