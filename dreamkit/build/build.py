"""Recipe and plug-ins become a model, where the parts fit each other (`dreamkit.build.fit`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from dreamkit.build.fit import fit
from dreamkit.build.fit_record import FAILURES, Fit, part_section
from dreamkit.errors import ConfigError, RecipeError
from dreamkit.model.adapters import adapt
from dreamkit.model.model import DreamModel
from dreamkit.parts.part import Part
from dreamkit.recipe.places import refusals
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.registry.registry import Registry


def build_model(recipe: Recipe, registry: Registry) -> DreamModel:
    """Build the model that `recipe.model` describes, on the CPU and in float32.

    Parts with `pretrained` read their weights. `recipe.train.seed` determines the other weights. Adapters are included;
    `recipe.init` and `recipe.train.trainable` are left to `train_recipe`.

    Raises:
        RecipeError: a part cannot be built, or two parts do not fit each other.
    """
    return build(fit(recipe, registry))


def build(found: Fit) -> DreamModel:
    """The model of a recipe whose parts fit, with the weights it names; the recipe's seed decides fresh ones.

    Raises:
        RecipeError: parts that do not fit, or that cannot be made.
    """
    _refuse_misfits(found)
    torch.manual_seed(found.recipe.train.seed)
    parts = {}
    for key, cls, config in _with_source(found):
        make = cls.from_config if config.pretrained is None else cls.from_pretrained
        parts[key] = _made(found, f"model.{key}", make, config)
    return _composed(found, parts)


def build_on_meta(found: Fit) -> DreamModel:
    """The model of a recipe whose parts fit, without weights: `build`'s tensors in name, shape and dtype, all meta.

    Raises:
        RecipeError: parts that do not fit, or one without `meta_modules`.
    """
    _refuse_misfits(found)
    parts = {
        key: _made(found, f"model.{key}", _on_meta, cls, config) for key, cls, config in _with_source(found)
    }
    with torch.device("meta"):
        return _composed(found, parts)


def _refuse_misfits(found: Fit) -> None:
    if found.problems:
        raise RecipeError(found.problems)


def _on_meta(cls: Any, config: Any) -> Part:
    part = cls.meta_modules(config)
    if part is None and config.pretrained is None:
        with torch.device("meta"):
            part = cls.from_config(config)
    if not isinstance(part, Part):
        raise ConfigError(
            {
                "": f"{cls.__name__} does not tell its size before its weights are read: its `meta_modules` gives "
                f"{'nothing' if part is None else type(part).__name__}, where the part without weights is wanted; "
                "its plug-in needs mending"
            }
        )
    return part


def _with_source(found: Fit) -> Iterator[tuple[str, Any, Any]]:
    """Key, class and config of each part that has weights to name."""
    for key in WITH_SOURCE:
        section = getattr(found.recipe.model, key)
        yield key, found.registry.get(key, section.name), section.config


def _composed(found: Fit, parts: dict[str, Any]) -> DreamModel:
    """The model of `parts`, those with sources, and fresh projectors, with the recipe's adapters."""
    recipe = found.recipe
    sources: dict[str, str | None] = {key: getattr(recipe.model, key).config.pretrained for key in parts}
    for key, spec in found.projectors.items():
        section = part_section(recipe.model, key)
        assert section is not None, "what has a spec has a section"
        cls: Any = found.registry.get("projector", section.name)
        sources[key] = None
        parts[key] = _made(found, f"model.{key}", cls.from_config, section.config, spec)
    model: DreamModel = _made(
        found,
        "model",
        DreamModel,
        **parts,
        dream_queries=recipe.model.dream_queries,
        special_tokens=recipe.model.special_tokens,
        lm_weight=recipe.loss.lm,
        denoising_weight=recipe.loss.denoising,
    )
    for index, adapter in enumerate(recipe.model.adapters):
        _made(found, f"model.adapters.{index}", adapt, parts[adapter.target], adapter)
    model.recipe = recipe
    model.sources = sources
    return model


def _made(found: Fit, key: str, make: Callable[..., Any], *args: Any, **named: Any) -> Any:
    try:
        return make(*args, **named)
    except FAILURES as error:
        raise RecipeError(refusals(error, key, found.recipe.places)) from error
