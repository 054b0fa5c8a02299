"""Reader of recipe files and `key=value` overrides. It merges them into one tree of values.

A recipe may extend others. Later ones are merged over earlier ones, and the recipe itself over all of them. Sections
merge key by key, and lists are replaced. A key without a value replaces its section by null. If a section `model.X`,
`data.N` or `held_out.N` names another component than the section below it, it replaces that section: options of one
component do not apply to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreamkit.errors import DreamkitError, RecipeProblem, describe_value, did_you_mean, excerpt
from dreamkit.recipe.data_paths import data_message
from dreamkit.recipe.earlier_keys import current_path, with_current_keys, without_alternatives
from dreamkit.recipe.references import resolve_references
from dreamkit.recipe.tree import BROKEN, MAX_CHARACTERS, Broken, Limits, Node, parse
from dreamkit.storage.json_files import key_problem
from dreamkit.storage.paths import irregular_kind, shown_path, written_path
from dreamkit.storage.urls import Url, location

COMMAND_LINE = "command line"
SUFFIXES = (".yaml", ".yml")
OTHER_EXTENDS = ("base", "bases", "_base_", "defaults", "extend", "include", "inherit", "inherits", "parent")
MAX_EXTENDS = 100  # names in all `extends` of a recipe, far above any real one


class RecipeFiles:
    """Reader of recipe files. It collects `problems`.

    `shipped` maps names to the recipes of all plug-ins, dreamkit's own included. `unknown_hint` ends the error about an
    unknown name. `complete` is false if a file of the recipe could not be read; then no key is reported as missing.
    """

    def __init__(self, shipped: Mapping[str, Path], unknown_hint: str = "") -> None:
        self.shipped = shipped
        self.unknown_hint = unknown_hint
        self.problems: list[RecipeProblem] = []
        self.complete = True
        self._limits = Limits()
        self._extends = MAX_EXTENDS
        self._trees: dict[Path, Node] = {}  # a file that several others extend is read and reported once

    def read(self, name: str, overrides: Sequence[str]) -> Node:
        """Return the merged tree of the recipe `name` (a file or a shipped name), with `${...}` resolved.

        An override is `key=value` or the name of another recipe. Recipes are merged first, in their order, then the
        settings: a setting wins over every recipe.
        """
        recipes = [text for text in overrides if self._is_recipe(text)]
        tree = Node({}, COMMAND_LINE, Path.cwd())
        for recipe in (name, *recipes):
            path = self._find(recipe, Path.cwd(), COMMAND_LINE, "recipe")
            tree = tree if path is None else self._merge(tree, self._read_file(path, ()), ())
        for steps, leaf in self._settings([text for text in overrides if text not in recipes]):
            tree = self._set(tree, steps, leaf, ())
        return resolve_references(tree, self.problems.append)

    def change(self, tree: Node, settings: Sequence[str]) -> Node:
        """Return a stored `tree`, whose `${...}` are texts, with `key=value` settings, whose `${...}` are resolved."""
        for steps, leaf in self._settings(settings):
            tree = self._set(tree, steps, resolve_references(leaf, self.problems.append), ())
        return tree

    def _settings(self, overrides: Sequence[str]) -> list[tuple[tuple[str, ...], Node]]:
        """Return the path and value of each setting, in the order in which to set them."""
        settings = self._whole(overrides)
        parsed = [override for text in settings if (override := self._parse_override(text)) is not None]
        self._refuse_expanded(parsed)
        # What replaces a section or list goes first, the outermost at the very first: it must not discard keys inside.
        parsed.sort(key=lambda override: (0, len(override[0])) if _replaces(*override) else (1, 0))
        return parsed

    def _refuse_expanded(self, parsed: Sequence[tuple[tuple[str, ...], Node]]) -> None:
        """Report texts that several settings give one key: a shell makes them from braces without quotes.

        Of other values, the last one holds.
        """
        numbers = Counter(steps for steps, leaf in parsed if isinstance(leaf.value, str))
        for steps, number in numbers.items():
            if number > 1:
                self._problem(
                    COMMAND_LINE,
                    ".".join(steps),
                    f"expected one text, got {number}; remove the others, or put braces {{...}} in quotes",
                )

    def _is_recipe(self, override: str) -> bool:
        return "=" not in override and (
            override in self.shipped or "/" in override or override.endswith(SUFFIXES)
        )

    def _problem(self, where: str, key: str, message: str) -> None:
        self.problems.append(RecipeProblem(where, key, message))

    def _find(self, name: str, folder: Path, where: str, key: str) -> Path | None:
        if name in self.shipped and Path(name).suffix not in SUFFIXES:
            return self.shipped[name]
        try:
            path = written_path(name, folder)
            place = location(name)
        except DreamkitError as error:
            message = str(error)
        else:
            place = place if isinstance(place, Url) else path
            data = data_message(place, name, self.shipped) if key == "recipe" else None
            if data is None and path.is_file():
                return path.resolve()
            message = data or self._unknown_message(path, name)
        self._problem(where, key, message)
        self.complete = False
        return None

    def _unknown_message(self, path: Path, name: str) -> str:
        beside = [other for other in path.parent.glob("*.yaml") if other.is_file()]
        names = [*self.shipped, *(str(Path(name).parent / other.name) for other in beside)]
        kind = irregular_kind(path) if path.exists() else None
        reason = f"'{path}' is {kind}, not a regular file" if kind else f"no file '{path}'"
        return (
            f"unknown recipe '{shown_path(name)}': {reason}; {did_you_mean(name, names)}{self.unknown_hint}"
        )

    def _read_file(self, path: Path, extending: tuple[Path, ...]) -> Node:
        """Return the merged tree of a file and its bases. `extending` are the files that extend it, outermost first."""
        if path not in self._trees:
            self._trees[path] = self._read_new(path, extending)
        return self._trees[path]

    def _read_new(self, path: Path, extending: tuple[Path, ...]) -> Node:
        empty = Node({}, f"{path}:1", path.parent)
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(MAX_CHARACTERS + 1)
        except (OSError, UnicodeDecodeError) as error:
            self._problem(str(path), "recipe", f"cannot read the file: {error}")
            self.complete = False
            return empty
        tree, problems = parse(text, lambda line: f"{path}:{line}", path.parent, limits=self._limits)
        self.problems += problems
        if not isinstance(tree.value, dict):
            if not isinstance(tree.value, Broken):
                message = f"expected sections such as 'model:', got {describe_value(tree.value)}"
                self._problem(tree.where, "recipe", message)
            self.complete = False
            return empty
        merged = empty
        for base in self._bases(tree.value.get("extends")):
            base_path = self._find(str(base.value), path.parent, base.where, "extends")
            if base_path is None:
                continue
            chain = (*extending, path)
            if base_path in chain:
                loop = " -> ".join(each.name for each in (*chain[chain.index(base_path) :], base_path))
                message = f"'{base.value}' extends itself: {loop}; remove one of these links"
                self._problem(base.where, "extends", message)
                self.complete = False
                continue
            merged = self._merge(merged, self._read_file(base_path, chain), ())
        for key in OTHER_EXTENDS:
            if key in tree.value:
                self._problem(tree.value[key].where, key, f"unknown key '{key}'; did you mean 'extends'?")
                self.complete = False
        own = {key: node for key, node in tree.value.items() if key not in ("extends", *OTHER_EXTENDS)}
        return self._merge(merged, with_current_keys(Node(own, tree.where, path.parent)), ())

    def _bases(self, extends: Node | None) -> list[Node]:
        if extends is None or isinstance(extends.value, Broken):
            return []
        bases = extends.value if isinstance(extends.value, list) else [extends]
        self._extends -= len(bases)
        if self._extends < 0:
            message = f"expected at most {MAX_EXTENDS} names in all 'extends' of a recipe, got more"
            self._problem(extends.where, "extends", message)
            self.complete = False
            return []
        for base in bases:
            if not isinstance(base.value, str):
                message = f"expected the name of a recipe, got {describe_value(base.value)}"
                self._problem(base.where, "extends", message)
                self.complete = False
        return [base for base in bases if isinstance(base.value, str)]

    def _whole(self, settings: Sequence[str]) -> list[str]:
        """Return settings without those that the shell split at spaces, each of which is one problem."""
        whole, rest = [], list(settings)
        while rest:
            text = rest.pop(0)
            value = text.partition("=")[2]
            if value.startswith(("{", "[")) and _is_open(value):
                sizes = [
                    size for size in range(1, len(rest) + 1) if not _is_open(" ".join([value, *rest[:size]]))
                ]
                if sizes:
                    text = " ".join([text, *rest[: sizes[0]]])
                    del rest[: sizes[0]]
                    message = f"the shell split this value at its spaces; put it in quotes: '{excerpt(text)}'"
                    self._problem(COMMAND_LINE, text.partition("=")[0], message)
                    continue
            whole.append(text)
        return whole

    def _parse_override(self, text: str) -> tuple[tuple[str, ...], Node] | None:
        """Return the path and the value of the override `a.b=value`; report it and return None if it is not one."""
        key, equals, value = text.partition("=")
        steps = current_path(key.strip().split("."))
        if not equals or not all(steps) or any(map(key_problem, steps)):
            message = "expected key=value, such as train.steps=100, or the name of a recipe"
            self._problem(COMMAND_LINE, excerpt(text), message)
            return None
        leaf, problems = parse(value, lambda line: COMMAND_LINE, Path.cwd(), key.strip(), self._limits)
        self.problems += problems
        return steps, with_current_keys(leaf, steps)

    def _set(self, base: Node, steps: Sequence[str], leaf: Node, path: tuple[str, ...]) -> Node:
        """Return `base` with `leaf` merged into it. `path` leads to `base`, and `steps` from there to `leaf`."""
        name = ".".join(path)
        if not steps:
            if leaf.value == {} and isinstance(base.value, dict) and base.value:
                self._problem(
                    leaf.where, name, "an empty section changes nothing; set its keys or leave it out"
                )
            return self._merge(base, leaf, path)
        step, inner = steps[0], (*path, steps[0])
        nothing = Node(None, leaf.where, leaf.folder)
        match base.value:
            case list(items) if step in map(str, range(len(items))):
                changed = self._set(items[int(step)], steps[1:], leaf, inner)
                return Node([*items[: int(step)], changed, *items[int(step) + 1 :]], base.where, base.folder)
            case dict(section):
                changed = self._set(section.get(step, nothing), steps[1:], leaf, inner)
                if _names_other(path, base, {step: changed}):
                    return Node({step: changed}, leaf.where, leaf.folder)
                below = without_alternatives(section, path, {step: changed})
                return Node({**below, step: changed}, base.where, base.folder)
            case None if not step.isdecimal():
                return Node({step: self._set(nothing, steps[1:], leaf, inner)}, leaf.where, leaf.folder)
            case Broken():
                return base
            case list(items) if items:
                message = f"expected an index from 0 to {len(items) - 1} of the list {name}, got '{step}'"
            case list() | None:
                message = f"{name} has no items; set the whole list, as in {name}=[...]"
            case value:
                message = f"expected {name} to be a section, got {describe_value(value)} at {base.where}"
        self._problem(leaf.where, ".".join(inner), message)
        return base if base.value is not None else Node(BROKEN, leaf.where, leaf.folder)

    def _merge(self, base: Node, over: Node, path: tuple[str, ...]) -> Node:
        """Return `over` merged over `base`, which is at `path`."""
        if not isinstance(base.value, dict) or not isinstance(over.value, dict):
            return over
        if _names_other(path, base, over.value):
            return over
        merged = without_alternatives(base.value, path, over.value)
        for key, node in over.value.items():
            merged[key] = self._merge(merged[key], node, (*path, key)) if key in merged else node
        return Node(merged, over.where, over.folder)


def _is_open(value: str) -> bool:
    """Return True if `value` has more opening than closing brackets."""
    return sum(map(value.count, "{[")) > sum(map(value.count, "}]"))


def _is_component(path: Sequence[str]) -> bool:
    """Return True if `path` is that of a section that names a component: `model.X`, `data.N` or `held_out.N`."""
    return len(path) == 2 and path[0] in ("model", "data", "held_out")


def _names_other(path: Sequence[str], base: Node, over: Mapping[str, Node]) -> bool:
    """Return True if `path` is that of a component, and `over` names another one than `base` does."""
    name = base.value.get("name") if _is_component(path) and isinstance(base.value, dict) else None
    return name is not None and "name" in over and name.value != over["name"].value


def _replaces(path: tuple[str, ...], leaf: Node) -> bool:
    """Return True if setting `path` to `leaf` may replace a section or list, rather than set keys in it."""
    if isinstance(leaf.value, list) or (_is_component(path[:-1]) and path[-1] == "name"):
        return True
    if not isinstance(leaf.value, dict):
        return False
    names_component = _is_component(path) and "name" in leaf.value
    return names_component or any(
        _replaces((*path, key), item) for key, item in leaf.value.items() if len(path) < 2
    )
