"""Where a cache is not what a recipe asks for, told from its manifest and the specs of the parts. Loads no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamkit.build.fit_record import Fit
from dreamkit.cache.manifest import MADE_BY, CacheManifest, remedy, without
from dreamkit.errors import CacheError, RecipeProblem

KEY = "train.cache"


def cache_problems(found: Fit) -> list[RecipeProblem]:
    """What is wrong with `train.cache`, told without weights. Sections of a draft that are None are passed over."""
    recipe = found.recipe
    if not recipe.train or recipe.train.cache is None:
        return []
    try:
        messages = [*_unlike(found, Path(recipe.train.cache))]
    except CacheError as error:
        messages = [str(error)]
    return [RecipeProblem(recipe.place(KEY), KEY, message) for message in messages]


def _unlike(found: Fit, folder: Path) -> Iterator[str]:
    """What the specs and the recipe say otherwise than a cache."""
    model, train = found.recipe.model, found.recipe.train
    adapters = getattr(model, "adapters", None) or ()
    manifest = CacheManifest.read(folder)
    manifest.verify(folder, read=False)
    for table, record in manifest.tables.items():
        part = MADE_BY[table]
        for name, shape in _shapes(found, table).items():
            if name in record["tensors"] and record["tensors"][name]["shape"] != shape:
                before = record["tensors"][name]["shape"]
                yield f"{part}: {name} of shape {before} in the cache, {shape} now; {remedy(folder)}"
                break
        learning = {*(train.trainable or ()), *(adapter.target for adapter in adapters)}
        if part in learning and (table == "features" or _all_of_it(found)):
            yield f"it holds {table}, but {part} learns, so that they change; freeze it, or {without(table)}"


def _all_of_it(found: Fit) -> bool:
    """Whether all weights of the image decoder decide on its latents."""
    if found.image_decoder is None:
        return False
    cls: Any = found.registry.get("image_decoder", found.recipe.model.image_decoder.name)
    return bool(cls.posterior_module == "")


def _shapes(found: Fit, table: str) -> dict[str, list[int]]:
    """Of the tensors of a row, as far as the specs tell."""
    vision, decoder = found.vision_encoder, found.image_decoder
    if table == "features":
        return {"features": [vision.num_tokens, vision.dim]} if vision else {}
    shape = [*decoder.latent_shape((decoder.image_size,) * 2)] if decoder else None
    return {"mean": shape, "std": shape} if shape else {}
