"""Loading of recipes, from files and overrides or from plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamkit.errors import RecipeError, RecipeProblem
from dreamkit.recipe.earlier_keys import with_current_keys
from dreamkit.recipe.files import RecipeFiles
from dreamkit.recipe.schema import SchemaReader
from dreamkit.recipe.sections import AdapterSection, Recipe
from dreamkit.recipe.tree import Node
from dreamkit.registry.registry import Registry
from dreamkit.storage.json_files import key_problem


def load_recipe(name: str, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Load the recipe `name`, a file or a shipped name, with `key=value` overrides.

    `registry` defaults to the installed plug-ins (`Registry.load()`).
    `dreamkit.build.fit.fit` checks that its parts fit each other.

    Raises:
        RecipeError: every problem at once.
    """
    return _require_valid(*draft_recipe(name, overrides, registry or Registry.load()))


def draft_recipe(
    name: str, overrides: Sequence[str], registry: Registry
) -> tuple[Recipe | None, list[RecipeProblem]]:
    """Load a recipe as `load_recipe` does, but return its problems beside it.

    A section with problems is None, so that the other sections can still be checked.
    """
    files = RecipeFiles(registry.recipes(), registry.about_problems())
    tree = files.read(name, overrides)
    recipe, problems = _read(tree, registry, complete=files.complete)
    return recipe, [*files.problems, *problems]


def recipe_from_dict(
    data: Mapping[str, Any], registry: Registry, where: str = "recipe", settings: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of plain values, checked as strictly as a file; errors name `where` as its place.

    `settings` are `key=value` changes of it.

    Raises:
        RecipeError: every problem at once.
    """
    tree = Node.from_plain(data, where, Path.cwd())
    if problems := [*_key_problems(tree)]:
        raise RecipeError(problems)
    files = RecipeFiles({})
    tree = files.change(with_current_keys(tree), settings)
    recipe, problems = _read(tree, registry, stored=True)
    return _require_valid(recipe, [*files.problems, *problems])


def adapters_from_dict(data: Mapping[str, Any], where: str) -> tuple[AdapterSection, ...]:
    """Return the adapters in a recipe of plain values; no component needs to be installed.

    Raises:
        RecipeError: every problem of the adapters.
    """
    model = Node.from_plain(data.get("model"), where, Path.cwd()).value
    adapters = model.get("adapters") if isinstance(model, dict) else None
    if adapters is None:
        return ()
    reader = SchemaReader(stored=True)
    read = reader.value(tuple[AdapterSection, ...], adapters, "model.adapters")
    if reader.problems:
        raise RecipeError(reader.problems)
    return tuple(read)


def _key_problems(tree: Node, key: str = "") -> Iterator[RecipeProblem]:
    """Yield a problem for each key of plain values that a file could not have."""
    items: list[tuple[str, Node]] = []
    if isinstance(tree.value, dict):
        items = [*tree.value.items()]
    elif isinstance(tree.value, list):
        items = [(str(index), item) for index, item in enumerate(tree.value)]
    for name, item in items:
        if problem := key_problem(name):
            yield RecipeProblem(item.where, key, problem)
        yield from _key_problems(item, f"{key}.{name}" if key else name)


def _read(
    tree: Node, registry: Registry, *, complete: bool = True, stored: bool = False
) -> tuple[Recipe | None, list[RecipeProblem]]:
    reader = SchemaReader(
        lambda kind, name: registry.get(kind, name).Config, complete=complete, stored=stored
    )
    recipe = reader.section(Recipe, tree, "", draft=True)
    if not isinstance(recipe, Recipe):
        return None, reader.problems
    object.__setattr__(recipe, "places", reader.places)
    return recipe, reader.problems


def _require_valid(recipe: Recipe | None, problems: Sequence[RecipeProblem]) -> Recipe:
    if problems:
        raise RecipeError(problems)
    assert recipe is not None, "without a recipe there are problems"
    return recipe
