"""Recipes, models and caches of tiny parts, for the tests of caching."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import layouts
import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.cache.caching import CacheReport
from dreamkit.cache.model_check import open_cache
from dreamkit.cache.read import Cache, Tables
from dreamkit.cache.write import make_cache
from dreamkit.data.batch import Batch, Collator
from dreamkit.document import Document
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.run import TrainResult, train_recipe

REGISTRY = Registry.load()
CLIP = tiny.RECIPE["model"]["vision_encoder"]
SD = tiny.RECIPE["model"]["image_decoder"]
TRAINABLE = [name for name in layouts.TRAINABLE if name != "language_model"]


def recipe(cache: Path | None = None, train: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """Return a recipe that trains neither the vision encoder nor the image decoder, with `changes` by key."""
    settings = {"trainable": TRAINABLE, "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "log_every": 1}
    settings |= {"cache": None if cache is None else str(cache)} | (train or {})
    data = [{"name": "pairs", "path": "unused"}]
    return recipe_from_dict(
        tiny.recipe(**({"train": settings, "data": data} | changes)), REGISTRY, where="tiny"
    )


def write(
    out: Path, recipe: Recipe, documents: Sequence[Document] | None = None, **options: Any
) -> CacheReport:
    return make_cache(recipe, REGISTRY, out, datasets=[layouts.TinyDocuments(documents)], **options)


def build_model(recipe: Recipe) -> DreamModel:
    model = build(fit(recipe, REGISTRY))
    model.set_trainable(recipe.train.trainable)
    return model


def open_with(recipe: Recipe, model: DreamModel | None = None) -> Cache:
    """Open the cache of a recipe as training does."""
    cache = open_cache(recipe, model or build_model(recipe), REGISTRY)
    assert cache is not None
    return cache


def batch(
    model: DreamModel, cache: Tables | None = None, documents: Sequence[Document] | None = None
) -> Batch:
    """Return one batch of all documents."""
    encoder, decoder = model.vision_encoder, model.image_decoder
    collator = Collator(model.sequencer(), encoder.preprocess, decoder.preprocess, cache=cache)
    return collator(documents or tiny.documents())


def run(out: Path, recipe: Recipe, **options: Any) -> TrainResult:
    options.setdefault("datasets", [layouts.TinyDocuments()])
    return train_recipe(recipe, REGISTRY, out, **options)


def with_config(section: dict[str, Any], *path: str, **values: Any) -> dict[str, Any]:
    """Return a part's section with other `values` in its `config`, or in the dict at `path` in that."""
    section = deepcopy(section)
    config = section["config"]
    for key in path:
        config = config[key]
    config |= values
    return section
