"""Records of the components that a recipe names."""

from __future__ import annotations

from dreamkit.checkpoints.manifest import ComponentRecord, component_sections
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry


def component_records(recipe: Recipe, registry: Registry) -> dict[str, ComponentRecord]:
    """Return the records of the components of `recipe` for a manifest, by recipe key."""
    records: dict[str, ComponentRecord] = {}
    for key, kind, name in component_sections(recipe.to_dict()):
        registered = registry.components(kind)[name]
        records[key] = {
            "kind": kind,
            "name": name,
            "distribution": registered.distribution,
            "version": registered.version,
        }
    return records
