r"""References in recipe values, which OmegaConf reads: `${key}`, `${.sibling}`, `${a.${b}}`; `\${` is the text `${`.

OmegaConf resolves a value again at each use, so that a few lines which refer to each other twice would take hours.
Here each value is resolved once, after those that it refers to, and replaces its text in the config.

Environment variables stay as they are written: only the reader of a path expands them (`SchemaReader`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, TypeAlias

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamkit.errors import DreamkitError, RecipeProblem, count, describe_value, did_you_mean, excerpt
from dreamkit.recipe.interpolations import (
    MAX_LENGTH,
    SYNTAX,
    VARIABLE,
    escape,
    has_variable,
    interpolations,
)
from dreamkit.recipe.tree import BROKEN, MAX_VALUES, Broken, Node

MAX_REFERENCES: Final = 500  # in a recipe, far above any real one; OmegaConf takes a second for a thousand

KeyPath: TypeAlias = tuple[str, ...]
_STEP: Final = re.compile(r"[^.\[\]]+")  # `data[0].path` is `data.0.path`


class _BrokenTargetError(DreamkitError):
    """A reference to a value whose problem is reported already."""


def resolve_references(tree: Node, report: Callable[[RecipeProblem], None]) -> Node:
    """Return `tree` with its references resolved. A reference that cannot be resolved is reported and BROKEN."""
    pending: dict[KeyPath, Node] = {}
    broken: set[KeyPath] = set()

    def collect(path: KeyPath, node: Node) -> Node:
        if isinstance(node.value, str) and "${" in node.value:
            pending[path] = node
        elif isinstance(node.value, Broken):
            broken.add(path)
        return node

    tree.map(collect)
    if not pending:
        return tree
    resolver = _Resolver(tree, pending, broken, report)
    for path in list(pending):
        resolver.resolve(path)
    return tree.map(lambda path, node: resolver.resolved.get(path, node))


class _Resolver:
    """Resolver of the nodes `pending`, each at its path. `broken` are the paths of values with problems."""

    def __init__(
        self,
        tree: Node,
        pending: dict[KeyPath, Node],
        broken: set[KeyPath],
        report: Callable[[RecipeProblem], None],
    ) -> None:
        self.pending = pending
        self.broken = broken
        self.report = report
        self.resolved: dict[KeyPath, Node] = {}
        self.unread = MAX_REFERENCES
        texts = tree.map(lambda path, node: Node(None, "", node.folder) if path in pending else node)
        values: Any = texts.plain()
        self.values = _size(values)
        self.config = OmegaConf.create(values)

    def resolve(self, path: KeyPath) -> None:
        """Resolve the node at `path`, after all that it refers to."""
        active: dict[KeyPath, Iterator[KeyPath]] = {}
        while path in self.pending or active:
            if path in self.pending and path not in active:
                active[path] = self._resolve_after(path)
            path = next(reversed(active))
            target: KeyPath | None = None
            try:
                target = next(active[path], None)
                if target in active:
                    names = [".".join(each) for each in (*list(active)[[*active].index(target) :], target)]
                    raise DreamkitError(f"it refers to itself: {' -> '.join(names)}")
            except (DreamkitError, OmegaConfBaseException, RecursionError) as error:
                self._break(path, error)
                target = None
            if target is None:
                del active[path]
            else:
                path = target

    def _break(self, path: KeyPath, error: Exception) -> None:
        """Report why the node at `path` cannot be resolved."""
        node = self.pending.pop(path)
        if not isinstance(error, _BrokenTargetError):
            reason = error if isinstance(error, DreamkitError) else SYNTAX
            message = f"cannot resolve {describe_value(node.value)}: {reason}"
            self.report(RecipeProblem(node.where, ".".join(path), message))
        self.broken.add(path)
        self.resolved[path] = Node(BROKEN, node.where, node.folder)

    def _resolve_after(self, path: KeyPath) -> Iterator[KeyPath]:
        """Yield each pending path that the node at `path` refers to, then resolve the node."""
        node = self.pending[path]
        text = str(node.value)
        self.unread -= text.count("${")
        if self.unread < 0:
            raise DreamkitError(f"expected at most {MAX_REFERENCES} references in a recipe, got more")
        yield from self._targets(path, text)
        value = self._read(path, _with_variables_escaped(text))
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if isinstance(plain, str) and len(plain) > MAX_LENGTH:
            raise DreamkitError(f"expected a text of at most {MAX_LENGTH} characters, got {len(plain)}")
        self.values += _size(plain) - 1
        if self.values > MAX_VALUES:
            raise DreamkitError(f"expected a recipe of at most {MAX_VALUES} values, got more")
        self._write(path, _escaped(plain))
        del self.pending[path]
        self.resolved[path] = Node.from_plain(plain, node.where, node.folder)

    def _targets(self, path: KeyPath, text: str) -> Iterator[KeyPath]:
        """Yield each pending path that the references of `text`, the value at `path`, need resolved."""
        for each in interpolations(text):
            if each.is_variable:
                continue
            if each.resolver == VARIABLE:
                raise DreamkitError(
                    f"expected no reference inside '${{{VARIABLE}:...}}', got '{excerpt(each.inner)}'"
                )
            if each.resolver:
                raise DreamkitError(f"expected a key or '{VARIABLE}:NAME', got '{excerpt(each.inner)}'")
            key = each.inner
            if "${" in key:
                if any(inner.resolver for inner in interpolations(key)):
                    raise DreamkitError(f"expected only keys in a key, got '{excerpt(key)}'")
                yield from self._targets(path, key)
                key = str(self._read(path, key))
            target = self._absolute(path, key.strip())
            yield from self._pending_around(target)

    def _absolute(self, path: KeyPath, key: str) -> KeyPath:
        """Return the path of `key` as written in the value at `path`; each dot at its start leaves one section."""
        ups = len(key) - len(key.lstrip("."))
        if ups > len(path):
            raise DreamkitError(f"expected at most {count(len(path), 'dot')} before a key here, got {ups}")
        return (*(path[: len(path) - ups] if ups else ()), *_STEP.findall(key))

    def _pending_around(self, target: KeyPath) -> Iterator[KeyPath]:
        """Yield the pending paths that lead to `target`, or are inside of it; raise if there is no value at it."""
        section: Any = self.config
        path: KeyPath = ()
        for step in target:
            key, keys = _key(step, section), _keys(section)
            path = (*path, key)
            if key not in keys:
                size = count(len(keys), "item")
                hint = f"its list has {size}" if OmegaConf.is_list(section) else did_you_mean(step, keys)
                raise DreamkitError(f"there is no key '{'.'.join(path)}'; {hint}")
            if path in self.pending:
                yield path
            if path in self.broken:
                raise _BrokenTargetError
            if OmegaConf.is_missing(section, _index(key, section)):
                raise DreamkitError(f"{'.'.join(path)} is '???', which stands for a missing value; set it")
            section = section[_index(key, section)]
        yield from [inner for inner in self.pending if inner[: len(path)] == path]
        if any(inner[: len(path)] == path for inner in self.broken):
            raise _BrokenTargetError

    def _read(self, path: KeyPath, text: str) -> Any:
        """Return the value of `text` at `path`, as OmegaConf resolves it."""
        return self._write(path, text)[_index(path[-1], self._section(path))]

    def _write(self, path: KeyPath, value: Any) -> Any:
        """Write `value` to `path` in the config; return the section around it."""
        section = self._section(path)
        section[_index(path[-1], section)] = value
        return section

    def _section(self, path: KeyPath) -> Any:
        section = self.config
        for step in path[:-1]:
            section = section[_index(step, section)]
        return section


def _key(step: str, section: Any) -> str:
    """Return the key of a section for a step of a reference: that of `-1` or `00` in a list is the item's index."""
    if OmegaConf.is_list(section):
        with suppress(ValueError):
            index = int(step)
            return str(index + len(section) if -len(section) <= index < 0 else index)
    return step


def _index(step: str, section: Any) -> str | int:
    return int(step) if OmegaConf.is_list(section) else step


def _keys(section: Any) -> list[str]:
    """Return the keys of a section or the indices of a list as texts, [] for any other value."""
    if OmegaConf.is_list(section):
        return [str(index) for index in range(len(section))]
    return [str(key) for key in section] if OmegaConf.is_dict(section) else []


def _with_variables_escaped(text: str) -> str:
    r"""Return `text`, if it names an environment variable, with all but its references as plain text for OmegaConf.

    So `${oc.env:NAME}` and `\${oc.env:NAME}` stay different.
    """
    if not has_variable(text):
        return text
    parts, start = [], 0
    for each in interpolations(text):
        if not each.is_variable:
            parts += [escape(text[start : each.start]), text[each.start : each.stop]]
            start = each.stop
    return "".join([*parts, escape(text[start:])])


def _escaped(value: Any) -> Any:
    """Return resolved values as texts that OmegaConf reads as they are."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value


def _size(value: Any) -> int:
    """Return the number of values in a tree, sections and lists included."""
    if isinstance(value, dict):
        return 1 + sum(_size(item) for item in value.values())
    if isinstance(value, list):
        return 1 + sum(_size(item) for item in value)
    return 1
