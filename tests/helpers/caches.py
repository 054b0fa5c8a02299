"""Caches of miniature models, for the tests of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

import layouts
import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.cache.read import Cache, open_cache
from dreamkit.cache.write import Made, make_cache
from dreamkit.data.batch import Batch, Collator
from dreamkit.document import Document
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.run import TrainResult, train_recipe as train_model

REGISTRY = Registry.load()
CLIP = tiny.RECIPE["model"]["vision_encoder"]
FROZEN = [name for name in layouts.TRAINABLE if name != "language_model"]


def recipe(cache: Path | None = None, train: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A recipe whose parts with sources are frozen."""
    settings = {"trainable": FROZEN, "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "log_every": 1}
    settings |= {"cache": None if cache is None else str(cache)} | (train or {})
    data = [{"name": "pairs", "path": "unused"}]
    return recipe_from_dict(tiny.recipe(train=settings, data=data, **changes), REGISTRY, where="tiny")


def make(out: Path, of: Recipe, documents: Sequence[Document] | None = None, **options: Any) -> Made:
    return make_cache(of, REGISTRY, out, datasets=[layouts.TinyDocuments(documents)], **options)


def batch(model: DreamModel, computed: Any = None, documents: Sequence[Document] | None = None) -> Batch:
    """One batch of all documents."""
    encoder, decoder = model.vision_encoder, model.image_decoder
    collator = Collator(model.sequencer(), encoder.preprocess, decoder.preprocess, cache=computed)
    return collator(documents or tiny.documents())


def model_of(recipe: Any) -> DreamModel:
    model = build(fit(recipe, REGISTRY))
    model.set_trainable(recipe.train.trainable)
    return model


def opened(recipe: Any, model: DreamModel | None = None) -> Cache:
    found = open_cache(recipe, model or model_of(recipe), torch.device("cpu"))
    assert found is not None
    return found


def run(out: Path, recipe: Any, **options: Any) -> TrainResult:
    options.setdefault("datasets", [layouts.TinyDocuments()])
    return train_model(recipe, REGISTRY, out, **options)


def changed(section: dict[str, Any], *path: str, **values: Any) -> dict[str, Any]:
    """The section of a part, its `config`, or what is in that at `path`, with other values."""
    section = deepcopy(section)
    config = section["config"]
    for key in path:
        config = config[key]
    config |= values
    return section
