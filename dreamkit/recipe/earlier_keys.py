"""Earlier names of recipe keys, read as the current ones, so that old recipes and checkpoints still load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from dreamkit.recipe.tree import Node

EARLIER: Final[Mapping[tuple[str, ...], str]] = {("loss", "vm"): "denoising"}


def current_path(steps: Sequence[str]) -> tuple[str, ...]:
    """Return the path of a key with the current name of every step."""
    path: tuple[str, ...] = ()
    for step in steps:
        path = (*path, EARLIER.get((*path, step), step))
    return path


def with_current_keys(node: Node, path: tuple[str, ...] = ()) -> Node:
    """Return the tree of `node`, which is at `path`, with the current names of its keys.

    A section with both names of a key keeps both; then the schema reader reports the earlier one as unknown.
    """
    if not isinstance(node.value, dict):
        return node
    section: dict[str, Node] = {}
    for key, item in node.value.items():
        inner = current_path((*path, key))
        name = key if inner[-1] in node.value else inner[-1]
        section[name] = with_current_keys(item, inner)
    return Node(section, node.where, node.folder)
