"""The components that a recipe names, and their distributions."""

from __future__ import annotations

from collections.abc import Iterator

from dreamkit.checkpoints.manifest import ComponentRecord
from dreamkit.recipe.sections import PARTS, Recipe
from dreamkit.registry.registry import Registry


def component_sections(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """Yield recipe key, kind and component name of each component in a recipe."""
    for key in PARTS:
        section = getattr(recipe.model, key)
        if section is not None:
            yield key, "projector" if key.endswith("_projector") else key, section.name
    for number, data in enumerate(recipe.data):
        yield f"data.{number}", "dataset", data.name


def component_records(recipe: Recipe, registry: Registry) -> dict[str, ComponentRecord]:
    """Return the records of the components of `recipe` for a manifest, by recipe key."""
    records: dict[str, ComponentRecord] = {}
    for key, kind, name in component_sections(recipe):
        registered = registry.components(kind)[name]
        records[key] = {
            "kind": kind,
            "name": name,
            "distribution": registered.distribution,
            "version": registered.version,
        }
    return records
