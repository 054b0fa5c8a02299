"""Caches of miniature models, for the tests of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import layouts
import tiny
from dreamkit.batch import Batch, Collator
from dreamkit.caching import Made, make_cache
from dreamkit.document import Document
from dreamkit.model import DreamModel
from dreamkit.plugins import Registry
from dreamkit.recipe import Recipe

REGISTRY = Registry.load()
FROZEN = [name for name in layouts.TRAINABLE if name != "language_model"]


def recipe(cache: Path | None = None, train: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A recipe whose parts with sources are frozen."""
    settings = {"trainable": FROZEN, "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "log_every": 1}
    settings |= {"cache": None if cache is None else str(cache)} | (train or {})
    data = [{"name": "pairs", "path": "unused"}]
    return Recipe.from_dict(tiny.recipe(train=settings, data=data, **changes), REGISTRY, where="tiny")


def make(out: Path, of: Recipe, documents: Sequence[Document] | None = None, **options: Any) -> Made:
    return make_cache(of, REGISTRY, out, datasets=[layouts.TinyDocuments(documents)], **options)


def batch(model: DreamModel, computed: Any = None, documents: Sequence[Document] | None = None) -> Batch:
    """One batch of all documents."""
    encoder, decoder = model.vision_encoder, model.image_decoder
    collator = Collator(model.sequencer(), encoder.preprocess, decoder.preprocess, computed=computed)
    return collator(documents or tiny.documents())
