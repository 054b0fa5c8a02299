"""Earlier names of recipe keys, read as the current ones, so that old recipes and checkpoints still load."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from dreamkit.recipe.tree import Node

EARLIER: Final[Mapping[tuple[str, ...], str]] = {("loss", "vm"): "denoising"}
# Keys of `train` that divide an update, and those of earlier recipes: a recipe has either.
DIVISIONS: Final = (("global_batch", "micro_batch"), ("batch_size", "accumulation"))
_INTERPOLATED: Final = re.compile(r"\$\{([\w.]+)([}.\[])")


def current_path(steps: Sequence[str]) -> tuple[str, ...]:
    """Return the path of a key with the current name of every step."""
    path: tuple[str, ...] = ()
    for step in steps:
        path = (*path, EARLIER.get((*path, step), step))
    return path


def with_current_keys(node: Node, path: tuple[str, ...] = ()) -> Node:
    """Return the tree of `node`, which is at `path`, with the current names of its keys, also in `${...}`.

    A section with both names of a key keeps both; then the schema reader reports the earlier one as unknown.
    """
    if isinstance(node.value, str):
        return replace(node, value=_INTERPOLATED.sub(_current_interpolation, node.value))
    if isinstance(node.value, list):
        items = [with_current_keys(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return replace(node, value=items)
    if not isinstance(node.value, dict):
        return node
    section: dict[str, Node] = {}
    for key, item in node.value.items():
        inner = current_path((*path, key))
        name = key if inner[-1] in node.value else inner[-1]
        where = item.where if name == key else f"{item.where} (written as {key})"
        section[name] = with_current_keys(replace(item, where=where), inner)
    return replace(node, value=section)


def without_alternatives(
    section: Mapping[str, Node], path: Sequence[str], over: Mapping[str, Node]
) -> dict[str, Node]:
    """Return the section at `path` without keys of `DIVISIONS` whose alternatives `over`, of another place, has."""
    if (*path,) != ("train",):
        return dict(section)
    new, old = DIVISIONS
    dropped = {
        key: {over[other].where for other in others if other in over}
        for keys, others in ((new, old), (old, new))
        for key in keys
    }
    return {key: node for key, node in section.items() if not dropped.get(key, set()) - {node.where}}


def _current_interpolation(match: re.Match[str]) -> str:
    return "${" + ".".join(current_path(match[1].split("."))) + match[2]
