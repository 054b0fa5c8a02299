"""The model of a training on torch's meta device, where tensors have shapes but no data."""

from __future__ import annotations

from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.build.parameter_groups import parameter_groups
from dreamkit.cache.recipe_check import cache_problems
from dreamkit.errors import DreamkitError, RecipeError
from dreamkit.model.model import DreamModel
from dreamkit.plan.memory import Memory, layout_of, memory_of
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry


def meta_model(recipe: Recipe, registry: Registry) -> DreamModel:
    """Return the model of `recipe` on the meta device, ready to be trained.

    Raises:
        RecipeError: parts do not fit, a part has no `meta_modules`, or `train.cache` or `train.groups` do not fit.
        DreamkitError: nothing is trained.
    """
    result = fit(recipe, registry)
    if problems := cache_problems(result):
        raise RecipeError(problems)
    model = build_on_meta(result)
    model.set_trainable(recipe.train.trainable)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise DreamkitError(
            "no step to plan, since nothing is trained; name parts in train.trainable or add model.adapters"
        )
    parameter_groups(model, recipe)  # its errors
    model.train()
    if recipe.train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def memory_before_step(recipe: Recipe, registry: Registry, *, processes: int, machines: int) -> Memory:
    """Return the memory of a training before its first step; its peak is the least that a step can have.

    Raises:
        RecipeError, DreamkitError: as `meta_model` and `layout_of`.
    """
    layout = layout_of(recipe.train, processes, machines)
    return memory_of(meta_model(recipe, registry), recipe.train, layout)
