"""Recipes are read: from files and overrides, or from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamkit.errors import RecipeError, RecipeProblem
from dreamkit.recipe.earlier_keys import with_current_keys
from dreamkit.recipe.files import RecipeFiles
from dreamkit.recipe.schema import SchemaReader
from dreamkit.recipe.sections import Recipe
from dreamkit.recipe.tree import Node
from dreamkit.registry.registry import Registry


def load_recipe(name: str, overrides: Sequence[str], registry: Registry) -> Recipe:
    """Reads the recipe `name`, a file or a shipped name, with `key=value` overrides.

    Raises:
        RecipeError: with every problem. Whether the parts fit each other is for `dreamkit.build.fit.fit`.
    """
    return _sound(*draft_recipe(name, overrides, registry))


def draft_recipe(
    name: str, overrides: Sequence[str], registry: Registry
) -> tuple[Recipe | None, list[RecipeProblem]]:
    """As `load_recipe`, but returns the problems, and the recipe as far as it can be read.

    In a recipe with problems, a section that cannot be read is None, so that the others can still be checked.
    """
    files = RecipeFiles(registry.recipes(), registry.about_problems())
    tree = files.read(name, overrides)
    recipe, problems = _read(tree, registry, complete=files.complete)
    return recipe, [*files.problems, *problems]


def recipe_from_dict(data: Mapping[str, Any], registry: Registry, where: str = "recipe") -> Recipe:
    """The recipe of plain values, checked as strictly as one read from a file; `where` is said in errors.

    Raises:
        RecipeError: with every problem.
    """
    return _sound(*_read(with_current_keys(Node.of(data, where, Path.cwd())), registry))


def _read(
    tree: Node, registry: Registry, *, complete: bool = True
) -> tuple[Recipe | None, list[RecipeProblem]]:
    def config_class(kind: str, name: str) -> type:
        return registry.get(kind, name).Config

    reader = SchemaReader(config_class, complete=complete)
    recipe = reader.section(Recipe, tree, "", draft=True)
    if not isinstance(recipe, Recipe):
        return None, reader.problems
    object.__setattr__(recipe, "places", reader.places)
    return recipe, reader.problems


def _sound(recipe: Recipe | None, problems: Sequence[RecipeProblem]) -> Recipe:
    if problems:
        raise RecipeError(problems)
    assert recipe is not None, "what is not a recipe is a problem"
    return recipe
