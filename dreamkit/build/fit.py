"""The fit of a recipe's parts to each other, found from their specs, without weights."""

from __future__ import annotations

from dreamkit.build.fit_adapters import fit_adapters
from dreamkit.build.fit_projectors import fit_projectors
from dreamkit.build.fit_record import Fit
from dreamkit.build.fit_settings import fit_generation, fit_lengths, fit_loss, fit_tokens
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.registry.registry import Registry


def fit(recipe: Recipe, registry: Registry) -> Fit:
    """The specs of the parts and what does not fit. Sections of a draft that are None are passed over."""
    found = Fit(recipe, registry)
    model = recipe.model
    if model is None:
        return found
    for kind in WITH_SOURCE:
        section = getattr(model, kind)
        if section is not None:
            setattr(found, kind, found.spec(kind, f"model.{kind}", section))
    fit_projectors(found, model)
    fit_lengths(found, model)
    fit_adapters(found, model)
    fit_tokens(found, model)
    fit_generation(found)
    fit_loss(found, model)
    return found
