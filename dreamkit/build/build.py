"""A model from a recipe whose parts fit (`dreamkit.build.fit`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dreamkit.build.fit import fit
from dreamkit.build.fit_record import FAILURES, Fit, part_section, source_of
from dreamkit.build.load_in_turns import load_in_turns
from dreamkit.build.load_part import load_part, load_stored_part
from dreamkit.build.quantize import quantize_part, require_libraries
from dreamkit.distributed import together
from dreamkit.errors import ConfigError, RecipeError
from dreamkit.model.adapters import adapt
from dreamkit.model.model import DreamModel
from dreamkit.parts.part import Part
from dreamkit.recipe.places import config_problems
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.registry.registry import Registry


def build_model(recipe: Recipe, registry: Registry) -> DreamModel:
    """Build the model that `recipe.model` describes, on the CPU and in float32, or float64 with that precision.

    Parts with `pretrained` read their weights. `recipe.train.seed` determines the other weights. Adapters are included;
    `recipe.init` and `recipe.train.trainable` are left to `train_recipe`.

    Raises:
        RecipeError: a part cannot be built, or two parts do not fit each other.
    """
    return build(fit(recipe, registry))


def build(fit: Fit, dtype: torch.dtype | None = None) -> DreamModel:
    """Build the model of a recipe, with the weights that it names; its seed determines random weights.

    With a `dtype`, its tensors have that type, and not all of them are in memory in float32 before: weights are mapped
    from the files of their sources, and a part whose weights cannot be mapped is cast before the next one is built.

    Raises:
        RecipeError: parts do not fit, or a part fails to build.
    """
    fit.require_valid()
    require_libraries(fit.recipe)
    torch.manual_seed(fit.recipe.train.seed)
    parts = {}
    for key, cls, config in _sourced_parts(fit):
        maps = dtype is not None or _kind(fit, key) is not None
        parts[key] = _call(fit, f"model.{key}", _mapped_part if maps else _part, cls, config, dtype)
    return _compose(fit, parts) if dtype is None else _compose(fit, parts, as_stored=True).to(dtype)


def build_as_stored(fit: Fit, scratch: Path) -> DreamModel:
    """Build the model of `build` in several processes that will shard it, each of which must call this function.

    Weights are mapped from the files of their sources, in the types that they have there. With all floating-point
    tensors cast to float32, and then to float64 with that precision, the model is that of `build`. Parts that cannot be
    mapped are built by one process of a machine at a time and mapped from a file in `scratch`, which exists meanwhile.

    Raises:
        RecipeError: parts do not fit, or a part fails to build, in any process.
    """
    fit.require_valid()
    require_libraries(fit.recipe)
    torch.manual_seed(fit.recipe.train.seed)
    parts = {
        key: _call(fit, f"model.{key}", _stored_part, cls, config, scratch)
        for key, cls, config in _sourced_parts(fit)
    }
    return _compose(fit, parts, as_stored=True)


def _part(cls: Any, config: Any, dtype: torch.dtype | None = None) -> Part:
    part: Part = cls.from_config(config) if config.pretrained is None else load_part(cls, config)
    return part if dtype is None else part.to(dtype)


def _mapped_part(cls: Any, config: Any, dtype: torch.dtype | None = None) -> Part:
    """Build a part that will be quantized or cast: if its weights can be mapped, the memory never holds all of them."""
    part = None if config.pretrained is None else load_stored_part(cls, config)
    return _part(cls, config, dtype) if part is None else part


def _stored_part(cls: Any, config: Any, scratch: Path) -> Part:
    with together():
        part = None if config.pretrained is None else load_stored_part(cls, config)
    if part is not None:
        return part
    return load_in_turns(lambda: _part(cls, config), scratch)


def build_on_meta(fit: Fit) -> DreamModel:
    """Build the model of a recipe on the meta device: tensors as in `build`, but without data.

    Raises:
        RecipeError: parts do not fit, or a part has no `meta_modules`.
    """
    fit.require_valid()
    require_libraries(fit.recipe)
    parts = {
        key: _call(fit, f"model.{key}", _part_on_meta, cls, config)
        for key, cls, config in _sourced_parts(fit)
    }
    with torch.device("meta"):
        return _compose(fit, parts)


def _part_on_meta(cls: Any, config: Any) -> Part:
    part = cls.meta_modules(config)
    if part is None and config.pretrained is None:
        with torch.device("meta"):
            part = cls.from_config(config)
    if not isinstance(part, Part):
        expected = f"expected the part without weights from {cls.__name__}.meta_modules"
        type_name = "None" if part is None else type(part).__name__
        raise ConfigError({"": f"{expected}, got {type_name}; fix its plug-in"})
    return part


def _sourced_parts(fit: Fit) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, class and config of each part whose section names a source of weights."""
    for key in WITH_SOURCE:
        section = getattr(fit.recipe.model, key)
        yield key, fit.registry.get(key, section.name), section.config


def _compose(fit: Fit, parts: dict[str, Any], *, as_stored: bool = False) -> DreamModel:
    """Compose the model of `parts`, new projectors and the recipe's adapters.

    `as_stored`: the parts have weights of any floating-point types, and what is new is of float32.
    """
    recipe = fit.recipe
    sources: dict[str, str | None] = {key: getattr(recipe.model, key).config.pretrained for key in parts}
    for key, spec in fit.projectors.items():
        section = part_section(recipe.model, key)
        assert section is not None, "a part with a spec has a section"
        cls: Any = fit.registry.get("projector", section.name)
        sources[key] = None
        parts[key] = _call(fit, f"model.{key}", cls.from_config, section.config, spec)
    model: DreamModel = _call(
        fit,
        "model",
        DreamModel,
        **parts,
        dream_queries=recipe.model.dream_queries,
        special_tokens=recipe.model.special_tokens,
        lm_weight=recipe.loss.lm,
        denoising_weight=recipe.loss.denoising,
    )
    for index, adapter in enumerate(recipe.model.adapters):
        is_mapped = as_stored or _kind(fit, adapter.target) is not None
        _call(fit, f"model.adapters.{index}", adapt, parts[adapter.target], adapter, is_mapped)
    for key in WITH_SOURCE:
        if (kind := _kind(fit, key)) is not None:
            _call(fit, f"model.{key}.quantize", quantize_part, parts[key], kind)
            if not as_stored:
                parts[key].float()
    model.recipe = recipe
    model.sources = sources
    return model.double() if recipe.train.precision == "float64" and not as_stored else model


def _kind(fit: Fit, key: str) -> str | None:
    """Return how the part of this key is quantized."""
    kind: str | None = getattr(fit.recipe.model, key).quantize
    return kind


def _call(fit: Fit, key: str, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call `function`; raise its failure as a problem of `key`."""
    try:
        return function(*args, **named)
    except FAILURES as error:
        raise RecipeError(config_problems(error, key, fit.recipe.places, source_of(args))) from error
