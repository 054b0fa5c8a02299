"""From the name of a recipe and `key=value` overrides to one tree of values.

A recipe extends others; later ones lie over earlier ones and itself over them all. Sections merge key by key, lists
are replaced, and naming another part replaces its whole section: options of one part mean nothing to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamkit.errors import RecipeProblem, did_you_mean
from dreamkit.recipe_tree import BROKEN, Broken, Node, parse, said

COMMAND_LINE = "command line"
SUFFIXES = (".yaml", ".yml")


class RecipeFiles:
    """Reads recipes, collecting `problems`.

    `shipped` are the recipes that plug-ins ship, by name; `about_missing` is said where a name is unknown.
    `complete` turns false when a file could not be read, so that keys it would have held are not said to be missing.
    """

    def __init__(self, shipped: Mapping[str, Path], about_missing: str = "") -> None:
        self.shipped = shipped
        self.about_missing = about_missing
        self.problems: list[RecipeProblem] = []
        self.complete = True

    def read(self, name: str, overrides: Sequence[str]) -> Node:
        """The merged tree of the recipe `name` (a file, or a shipped name), overridden, with `${...}` filled in."""
        path = self._find(name, Path.cwd(), COMMAND_LINE, "recipe")
        tree = Node({}, COMMAND_LINE, Path.cwd()) if path is None else self._file(path, ())
        over = Node({}, COMMAND_LINE, Path.cwd())
        for text in overrides:
            over = self._merge(over, self._override(text), ())
        return self._filled(self._merge(tree, over, (), indexing=True))

    def _problem(self, where: str, key: str, message: str) -> None:
        self.problems.append(RecipeProblem(where, key, message))

    def _find(self, name: str, folder: Path, where: str, key: str) -> Path | None:
        path = folder / name
        if name not in self.shipped or path.suffix in SUFFIXES:
            if path.is_file():
                return path.resolve()
            near = [
                *self.shipped,
                *(str(Path(name).parent / other.name) for other in path.parent.glob("*.yaml")),
            ]
            message = f"no file '{path}', and no recipe '{name}' is shipped; {did_you_mean(name, near)}"
            self._problem(where, key, message + self.about_missing)
            self.complete = False
            return None
        return self.shipped[name]

    def _file(self, path: Path, extending: tuple[Path, ...]) -> Node:
        """The merged tree of a file and what it extends; `extending` are the files that led here."""
        empty = Node({}, f"{path}:1", path.parent)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._problem(str(path), "recipe", f"cannot be read: {error}")
            self.complete = False
            return empty
        tree, problems = parse(text, lambda line: f"{path}:{line}", path.parent)
        self.problems += problems
        if not isinstance(tree.value, dict):
            if not isinstance(tree.value, Broken):
                self._problem(
                    tree.where, "recipe", f"{said(tree)} found, but a recipe is a section, such as 'model:'"
                )
            self.complete = False
            return empty
        merged = empty
        for base in self._extended(tree.value.get("extends")):
            found = self._find(str(base.value), path.parent, base.where, "extends")
            if found is None:
                continue
            chain = (*extending, path)
            if found in chain:
                loop = " -> ".join(each.name for each in (*chain[chain.index(found) :], found))
                self._problem(
                    base.where, "extends", f"'{base.value}' extends itself: {loop}; take out one of these"
                )
                self.complete = False
                continue
            merged = self._merge(merged, self._file(found, chain), ())
        own = {key: node for key, node in tree.value.items() if key != "extends"}
        return self._merge(merged, Node(own, tree.where, path.parent), ())

    def _extended(self, extends: Node | None) -> list[Node]:
        if extends is None or isinstance(extends.value, Broken):
            return []
        bases = extends.value if isinstance(extends.value, list) else [extends]
        for base in bases:
            if not isinstance(base.value, str):
                self._problem(
                    base.where, "extends", f"{said(base)} found, but the name of a recipe is wanted"
                )
                self.complete = False
        return [base for base in bases if isinstance(base.value, str)]

    def _override(self, text: str) -> Node:
        """`a.b=value` as a tree with one leaf."""
        key, equals, value = text.partition("=")
        steps = key.strip().split(".")
        if not equals or not all(steps):
            self._problem(COMMAND_LINE, text, "this is not of the form key=value, such as train.steps=100")
            return Node({}, COMMAND_LINE, Path.cwd())
        leaf, problems = parse(value, lambda line: COMMAND_LINE, Path.cwd(), key.strip())
        self.problems += problems
        for step in reversed(steps):
            leaf = Node({step: leaf}, COMMAND_LINE, Path.cwd())
        return leaf

    def _merge(self, base: Node, over: Node, path: tuple[str, ...], indexing: bool = False) -> Node:
        """`over` laid over `base`. `indexing`: keys of `over` may be the numbers of a list's items."""
        if indexing and isinstance(base.value, list) and isinstance(over.value, dict):
            return self._merge_items(base, base.value, over.value, path)
        both = isinstance(base.value, dict) and isinstance(over.value, dict)
        if not both or (len(path) == 2 and path[0] == "model" and _is_another(base, over)):
            return over
        assert isinstance(base.value, dict) and isinstance(over.value, dict)
        merged = dict(base.value)
        for key, node in over.value.items():
            merged[key] = self._merge(merged[key], node, (*path, key), indexing) if key in merged else node
        return Node(merged, base.where if indexing else over.where, over.folder)

    def _merge_items(
        self, base: Node, items: list[Node], over: dict[str, Node], path: tuple[str, ...]
    ) -> Node:
        merged = dict(enumerate(items))
        for key, node in over.items():
            if key in map(str, merged):
                merged[int(key)] = self._merge(merged[int(key)], node, (*path, key), indexing=True)
            else:
                wanted = f"from 0 to {len(items) - 1}" if items else "none, for it is empty"
                where = ".".join(path)
                self._problem(node.where, f"{where}.{key}", f"{where} is a list, and its items are {wanted}")
        return Node(list(merged.values()), base.where, base.folder)

    def _filled(self, tree: Node) -> Node:
        """The tree with `${key}` and `${oc.env:NAME}` filled in by OmegaConf."""

        def fail(path: tuple[str, ...], node: Node, error: Exception) -> Node:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._problem(node.where, ".".join(path), f"{said(node)} cannot be filled in: {reason}")
            return Node(BROKEN, node.where, node.folder)

        def well_formed(path: tuple[str, ...], node: Node) -> Node:
            try:
                OmegaConf.create([node.value] if _is_interpolation(node) else [])
            except OmegaConfBaseException as error:
                return fail(path, node, error)
            return node

        def fill(path: tuple[str, ...], node: Node) -> Node:
            if not _is_interpolation(node):
                return node
            section = config
            try:
                for step in path[:-1]:
                    section = section[int(step) if OmegaConf.is_list(section) else step]
                value = section[int(path[-1]) if OmegaConf.is_list(section) else path[-1]]
                plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except (OmegaConfBaseException, RecursionError) as error:
                return fail(path, node, error)
            return Node.of(plain, node.where, node.folder)

        tree = tree.map(well_formed)
        config = OmegaConf.create(tree.plain())  # type: ignore[call-overload]
        return tree.map(fill)


def _is_interpolation(node: Node) -> bool:
    return isinstance(node.value, str) and "${" in node.value


def _is_another(base: Node, over: Node) -> bool:
    """Whether two sections name different parts."""
    names = [s.value["name"].value for s in (base, over) if isinstance(s.value, dict) and "name" in s.value]
    return len(names) == 2 and names[0] != names[1]
