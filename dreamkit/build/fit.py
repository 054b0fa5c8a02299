"""The check that a recipe's parts fit each other, from their specs and without weights."""

from __future__ import annotations

from dreamkit.build.fit_adapters import fit_adapters
from dreamkit.build.fit_groups import fit_groups
from dreamkit.build.fit_projectors import fit_projectors
from dreamkit.build.fit_quantized import fit_quantized
from dreamkit.build.fit_record import Fit
from dreamkit.build.fit_settings import fit_generation, fit_images, fit_lengths, fit_loss, fit_tokens
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.registry.registry import Registry


def fit(recipe: Recipe, registry: Registry) -> Fit:
    """Infer the specs of the parts and check them; skip sections of a draft that are None."""
    result = Fit(recipe, registry)
    model = recipe.model
    if model is None:
        return result
    for kind in WITH_SOURCE:
        section = getattr(model, kind)
        if section is not None:
            setattr(result, kind, result.infer_spec(kind, f"model.{kind}", section))
    fit_projectors(result, model)
    fit_lengths(result, model)
    fit_adapters(result, model)
    fit_quantized(result, model)
    fit_tokens(result, model)
    fit_generation(result)
    fit_loss(result, model)
    fit_images(result)
    fit_groups(result)
    return result
