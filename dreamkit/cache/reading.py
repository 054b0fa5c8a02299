"""A cache that is read in place of running what made it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit.batch import Moments
from dreamkit.cache.identity import differing
from dreamkit.cache.keys import picture_key
from dreamkit.cache.maker import maker, why_not
from dreamkit.cache.manifest import MADE_BY, CacheManifest, damaged, remedy, shard_name
from dreamkit.cache.shards import Shards
from dreamkit.errors import CacheError, RecipeProblem
from dreamkit.fit import Fit, fit
from dreamkit.model import DreamModel
from dreamkit.plugins import Registry
from dreamkit.recipe import Recipe

KEY = "train.cache"
EXTRAS = "extras."  # before the names of a decoder's extras, in a table of latents
SPARED = {"features": "vision_encoder does not run", "latents": "image_decoder does not encode"}

Named = Sequence[tuple[str, Picture]]


class Tables(ABC):
    """Tables as a `dreamkit.batch.Collator` takes them."""

    @abstractmethod
    def rows(self, table: str, pictures: Named) -> dict[str, Tensor] | None:
        """The tensors (N, ...) of these pictures; None: there is no such table."""

    def features(self, pictures: Named) -> Tensor | None:
        rows = self.rows("features", pictures)
        return None if rows is None else rows["features"]

    def moments(self, pictures: Named) -> Moments | None:
        rows = self.rows("latents", pictures)
        if rows is None:
            return None
        extras = {name.removeprefix(EXTRAS): rows[name] for name in rows if name.startswith(EXTRAS)}
        return Moments(rows["mean"], rows.get("std"), extras)


class Cache(Tables):
    """The tables of a folder.

    Raises:
        CacheError: it cannot be read, or holds other than its manifest says; of `rows`, a picture that it lacks.
    """

    def __init__(self, folder: Path, manifest: CacheManifest) -> None:
        self.folder = folder
        self.shards = {
            table: Shards([folder / shard_name(table, number) for number in range(record["shards"])])
            for table, record in manifest.tables.items()
        }
        problems = []
        for table, shards in self.shards.items():
            said, found = manifest.tables[table], (len(shards), shards.tensors())
            if found != (said["pictures"], said["tensors"]):
                wanted = f"{said['pictures']} of {said['tensors']}"
                problems.append(
                    f"{table}: {found[0]} pictures of {found[1]} are there, but {wanted} should be"
                )
        if problems:
            raise CacheError(damaged(folder, problems))

    def __str__(self) -> str:
        tables = [
            f"{table} (pictures: {len(shards):,}, {SPARED[table]})" for table, shards in self.shards.items()
        ]
        return f"read from {self.folder}: {', '.join(tables)}"

    def rows(self, table: str, pictures: Named) -> dict[str, Tensor] | None:
        if table not in self.shards:
            return None
        places = []
        for name, picture in pictures:
            place = self.shards[table].find(picture_key(picture))
            if place is None:
                raise CacheError(
                    f"{name}: the cache {self.folder} has no {table} of one of its pictures ({picture.width} x "
                    f"{picture.height}, {picture.mode}), so it is of other data; {remedy(self.folder)}"
                )
            places.append(place)
        return self.shards[table].rows(places)


class Zeros(Tables):
    """A cache that has every picture, and zeros for it, of the shapes and types that a manifest tells."""

    def __init__(self, manifest: CacheManifest) -> None:
        self.manifest = manifest

    def rows(self, table: str, pictures: Named) -> dict[str, Tensor] | None:
        if table not in self.manifest.tables:
            return None
        tensors = self.manifest.tables[table]["tensors"]
        return {
            name: torch.zeros(len(pictures), *record["shape"], dtype=getattr(torch, record["dtype"]))
            for name, record in tensors.items()
        }


def cache_problems(recipe: Recipe, registry: Registry) -> list[RecipeProblem]:
    """What is wrong with `train.cache`, told without weights. Sections of a draft that are None are passed over."""
    if not recipe.train or recipe.train.cache is None:
        return []
    try:
        messages = [*_unlike(fit(recipe, registry), Path(recipe.train.cache))]
    except CacheError as error:
        messages = [str(error)]
    return [RecipeProblem(recipe.place(KEY), KEY, message) for message in messages]


def _unlike(found: Fit, folder: Path) -> Iterator[str]:
    """What the specs and the recipe say otherwise than a cache."""
    model, train = found.recipe.model, found.recipe.train
    adapters = getattr(model, "adapters", None) or ()
    for table, record in CacheManifest.read(folder).tables.items():
        part = MADE_BY[table]
        for name, shape in _shapes(found, table).items():
            if name in record["tensors"] and record["tensors"][name]["shape"] != shape:
                before = record["tensors"][name]["shape"]
                yield f"{part}: {name} of shape {before} in the cache, {shape} now; {remedy(folder)}"
        learning = {*(train.trainable or ()), *(adapter.target for adapter in adapters)}
        if table == "features" and part in learning:
            yield (
                f"it holds {table}, but {part} learns, so that they change; freeze it, or make a cache without them by "
                "--only latents"
            )


def _shapes(found: Fit, table: str) -> dict[str, list[int]]:
    """Of the tensors of a row, as far as the specs tell."""
    vision, decoder = found.vision_encoder, found.image_decoder
    if table == "features":
        return {"features": [vision.num_tokens, vision.dim]} if vision else {}
    shape = [*decoder.latent_shape((decoder.image_size,) * 2)] if decoder else None
    return {"mean": shape, "std": shape} if shape else {}


def open_cache(recipe: Recipe, model: DreamModel, device: torch.device) -> Cache | None:
    """The cache that the training of `model` by `recipe` on `device` reads; None where it names none.

    What is spared is moved to `device`, and asked what it makes of a picture.

    Raises:
        CacheError: it was made otherwise, what it holds is learning, or a file is missing or cut short.
    """
    if recipe.train.cache is None:
        return None
    folder = Path(recipe.train.cache)
    manifest = CacheManifest.read(folder)
    manifest.verify(folder, read=False)
    problems: list[str] = []
    for table, record in manifest.tables.items():
        reason = why_not(model, table)
        made_by = MADE_BY[table]
        lines = (
            [reason] if reason else differing(made_by, record["maker"], maker(model, recipe, table, device))
        )
        problems += [f"  {table}: {line}" for line in lines]
    if problems:
        listed = "\n".join(problems)
        raise CacheError(f"{folder} does not fit this training; {remedy(folder)}\n{listed}")
    return Cache(folder, manifest)
