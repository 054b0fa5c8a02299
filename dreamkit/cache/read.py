"""A cache that is read in place of running what made it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dreamkit.cache.computed import Named, Tables
from dreamkit.cache.identity import differing
from dreamkit.cache.keys import picture_key
from dreamkit.cache.maker import maker, why_not
from dreamkit.cache.manifest import MADE_BY, CacheManifest, remedy, shard_name, without
from dreamkit.cache.shards import Shards
from dreamkit.errors import CacheError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe


class Cache(Tables):
    """The tables of a folder.

    Raises:
        CacheError: it cannot be read, or holds other than its manifest says; of `rows`, a picture that it lacks.
    """

    def __init__(self, folder: Path, manifest: CacheManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.shards = {
            table: Shards([folder / shard_name(table, number) for number in range(record["shards"])])
            for table, record in manifest.tables.items()
        }
        problems = []
        for table, shards in self.shards.items():
            said, found = manifest.tables[table], (len(shards), shards.tensors())
            rows = said["pictures"] + 1  # that of the blank
            if found != (rows, said["tensors"]):
                wanted = f"{rows} of {said['tensors']}"
                problems.append(f"{table}: {found[0]} rows of {found[1]} are there, but {wanted} should be")
        if problems:
            raise manifest.damaged(folder, problems)

    def __str__(self) -> str:
        return self.manifest.told(self.folder)

    def rows(self, table: str, pictures: Named) -> dict[str, Tensor] | None:
        if table not in self.shards:
            return None
        places = []
        for name, picture in pictures:
            place = self.shards[table].find(picture_key(picture))
            if place is None:
                raise CacheError(
                    f"{name}: the cache {self.folder} has no {table} of one of its pictures ({picture.width} x "
                    f"{picture.height}, {picture.mode}): data was added or changed since it was made; "
                    f"{remedy(self.folder)}"
                )
            places.append(place)
        return self.shards[table].rows(places)


def _is_random(recipe: Recipe, part: str) -> bool:
    return recipe.init is None and getattr(recipe.model, part).config.pretrained is None


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
    changing, other = [], []
    for table, record in manifest.tables.items():
        made_by = MADE_BY[table]
        if reason := why_not(model, table):
            changing.append(f"  {table}: {reason}; freeze it, or {without(table)}")
            continue
        here = maker(model, recipe, table, device)
        lines = [*differing(made_by, record["maker"], here)]
        if record["maker"]["weights"] != here["weights"] and _is_random(recipe, made_by):
            lines.append(
                f"{made_by}: its weights are random (nothing is named by pretrained or init), and come from "
                f"train.seed, which is {recipe.train.seed} now"
            )
        other += [f"  {table}: {line}" for line in lines]
    if changing or other:
        cure = f"; {remedy(folder)}" if other else ""
        listed = "\n".join([*changing, *other])
        raise CacheError(f"{folder} does not fit this training{cure}\n{listed}")
    return Cache(folder, manifest)
