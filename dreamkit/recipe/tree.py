"""YAML as a tree of values, each with its file and line.

Scalars follow YAML 1.2: `2e-5` is a number, `yes` and `12:30` are strings, and there are no dates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from dreamkit.errors import RecipeProblem, excerpt, surrogate_problem
from dreamkit.recipe.quotes import quotes_hint
from dreamkit.storage.json_files import MAX_DEPTH, MAX_DIGITS, key_problem

_TAB: Final = "found character '\\t' that cannot start any token"  # PyYAML's message

# far above any real recipe
MAX_CHARACTERS = 100_000  # in the files and settings of a recipe; more take seconds to parse
MAX_VALUES = 5_000  # in these, and with all references; a few nested aliases can expand to any number


@dataclass
class Limits:
    """Characters and values that may still be read."""

    characters: int = MAX_CHARACTERS
    values: int = MAX_VALUES


class Broken:
    """Placeholder of a value whose problem is reported already, so that it causes no second one."""


BROKEN: Final = Broken()
Value: TypeAlias = "bool | int | float | str | list[Node] | dict[str, Node] | Broken | None"


@dataclass(frozen=True)
class Node:
    """A value with its place (`file:line`) and the folder that its relative paths start from."""

    value: Value
    where: str
    folder: Path

    def plain(self) -> object:
        """Return the value without places; a broken value is None."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return None if isinstance(self.value, Broken) else self.value

    @classmethod
    def from_plain(cls, value: object, where: str, folder: Path) -> Node:
        """Return the tree of a plain value whose every key has the same place."""
        if isinstance(value, Mapping):
            return cls(
                {str(key): cls.from_plain(item, where, folder) for key, item in value.items()}, where, folder
            )
        if isinstance(value, Sequence) and not isinstance(value, str):
            return cls([cls.from_plain(item, where, folder) for item in value], where, folder)
        is_scalar = value is None or isinstance(value, bool | int | float | str)
        return cls(value if is_scalar else str(value), where, folder)  # type: ignore[arg-type]

    def map(self, change: Callable[[tuple[str, ...], Node], Node], path: tuple[str, ...] = ()) -> Node:
        """Return the tree with `change(path, node)` in the place of each scalar `node`."""
        if isinstance(self.value, dict):
            changed = {key: node.map(change, (*path, key)) for key, node in self.value.items()}
            return Node(changed, self.where, self.folder)
        if isinstance(self.value, list):
            items = [node.map(change, (*path, str(index))) for index, node in enumerate(self.value)]
            return Node(items, self.where, self.folder)
        return change(path, self)


def parse(
    text: str, place: Callable[[int], str], folder: Path, key: str = "", limits: Limits | None = None
) -> tuple[Node, list[RecipeProblem]]:
    """Return the tree of a YAML text, and its problems.

    `place` returns the place of a line (from 1). `key` is the path of the whole text in the recipe. `limits` are
    those of all texts of the recipe; this one is subtracted.
    """
    limits = limits or Limits()
    reader = _Reader(place, folder, limits)
    limits.characters -= len(text)
    if limits.characters < 0:
        message = (
            f"expected at most {MAX_CHARACTERS} characters in a recipe and all that it extends, got more"
        )
        return reader.report(place(1), key, message), reader.problems
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        where = place(text.count("\n", 0, error.position) + 1)
        shown = excerpt(text[error.position])
        message = surrogate_problem(text) or (
            f"invalid YAML: expected printable characters, got '{shown}'; remove it"
        )
        return reader.report(where, key, message), reader.problems
    try:
        root = loader.get_single_node()
    except (ValueError, OverflowError):  # of `chr`
        message = "invalid YAML: an escape in double quotes that names no character"
        return reader.report(place(loader.line + 1), key, message), reader.problems
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = getattr(error, "problem", None) or error
        where = place(mark.line + 1 if mark else 1)
        shown = excerpt(" ".join(str(reason).split()).replace(_TAB, "found a tab; use spaces"), 300)
        hint = excerpt(quotes_hint(text, mark.line, key), 300) if mark else ""
        return reader.report(where, key, f"invalid YAML: {shown}{hint}"), reader.problems
    except RecursionError:
        return reader.report(place(1), key, "values are nested too deeply"), reader.problems
    if root is None:
        return Node(None, place(1), folder), reader.problems
    return reader.read(root, place(root.start_mark.line + 1), key, ()), reader.problems


class _Reader:
    def __init__(self, place: Callable[[int], str], folder: Path, limits: Limits) -> None:
        self.place = place
        self.folder = folder
        self.limits = limits
        self.problems: list[RecipeProblem] = []

    def report(self, where: str, key: str, message: str) -> Node:
        self.problems.append(RecipeProblem(where, key or "recipe", message))
        return Node(BROKEN, where, self.folder)

    def read(self, node: yaml.Node, where: str, key: str, parents: tuple[yaml.Node, ...]) -> Node:
        """Return the tree of a YAML node. `where` is the place of its key; the value may begin a line later."""
        if any(node is parent for parent in parents):
            return self.report(where, key, "this alias refers to a value that contains it")
        if len(parents) > MAX_DEPTH:
            return self.report(where, key, f"expected at most {MAX_DEPTH} levels of nesting, got more")
        self.limits.values -= 1
        if self.limits.values == -1:
            return self.report(
                where,
                key,
                f"expected at most {MAX_VALUES} values, got more; each use of an alias counts all its values",
            )
        if self.limits.values < 0:
            return Node(BROKEN, where, self.folder)
        inner, prefix = (*parents, node), f"{key}." if key else ""
        if isinstance(node, yaml.MappingNode) and node.tag == _tag("map"):
            entries: dict[str, Node] = {}
            for key_node, value_node in node.value:
                line = self.place(key_node.start_mark.line + 1)
                if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _tag("str"):
                    self.report(
                        line, key, f"expected a string as key, got {_shown(key_node)}; put it in quotes"
                    )
                    continue
                name = _with_whole_pairs(key_node.value)
                if name == "<<":  # of YAML 1.1
                    message = "'<<' does not merge here; write the keys, or extend a recipe with them"
                    self.report(line, prefix + name, message)
                    continue
                if problem := surrogate_problem(name) or key_problem(name):
                    self.report(line, key, problem)
                    continue
                if name in entries:
                    self.report(
                        line,
                        prefix + name,
                        f"duplicate key, first set at {entries[name].where}; keep one of the two",
                    )
                entries[name] = self.read(value_node, line, prefix + name, inner)
            return Node(entries, where, self.folder)
        if isinstance(node, yaml.SequenceNode) and node.tag == _tag("seq"):
            items = [
                self.read(item, self.place(item.start_mark.line + 1), f"{prefix}{index}", inner)
                for index, item in enumerate(node.value)
            ]
            return Node(items, where, self.folder)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            return self.report(where, key, _mismatch(node))
        if node.tag in (_tag("int"), _tag("float")) and len(node.value) > MAX_DIGITS:
            return self.report(
                where, key, f"expected a number of at most {MAX_DIGITS} digits, got {_shown(node)}"
            )
        try:
            return Node(_read_scalar(node), where, self.folder)
        except ValueError:
            return self.report(where, key, _mismatch(node))


def _mismatch(node: yaml.Node) -> str:
    """Return the error message about a value that is not a text, or does not fit its tag."""
    problem = surrogate_problem(node.value) if isinstance(node, yaml.ScalarNode) else None
    if problem is not None:
        return problem
    tag = excerpt(node.tag.replace(_tag(""), "!!"))
    return f"cannot read {_shown(node)} as {tag}; correct the value or remove the tag"


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"'{excerpt(node.value)}'"
    return "a section" if isinstance(node, yaml.MappingNode) else "a list"


def _read_scalar(node: yaml.ScalarNode) -> Value:
    """Return the value of a scalar. A tag such as `!!int` must fit its text, as an implicit type does."""
    pattern = _PATTERNS.get(node.tag)
    if pattern is not None and not pattern.match(node.value):
        raise ValueError(node.value)
    return _SCALARS[node.tag](node.value)


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _string(text: str) -> str:
    whole = _with_whole_pairs(text)
    whole.encode()  # a ValueError for a lone surrogate
    return whole


def _with_whole_pairs(text: str) -> str:
    """Return `text` with pairs of surrogates, which JSON writes for a character, as that character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: Mapping[str, Callable[[str], Value]] = {
    _tag("null"): lambda text: None,
    _tag("bool"): _bool,
    _tag("int"): lambda text: int(text) if text.lstrip("+-").isdecimal() else int(text, 0),
    _tag("float"): _float,
    _tag("str"): _string,
}


class _Loader(yaml.SafeLoader):
    """Loader of scalars by YAML 1.2's core schema. PyYAML's own follows YAML 1.1, where `2e-5` is a string."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_PATTERNS: dict[str, re.Pattern[str]] = {}
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _PATTERNS[_tag(_name)] = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(_tag(_name), _PATTERNS[_tag(_name)], _first)
