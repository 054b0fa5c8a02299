"""A cache that is read instead of running the parts that computed it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit.cache.manifest import CacheManifest, recreate_hint, shard_name
from dreamkit.cache.shards import Shards, picture_key
from dreamkit.data.batch import Moments
from dreamkit.errors import CacheError, count, excerpt

EXTRAS = "extras."  # before the names of a decoder's extras, in a table of latents

NamedPictures: TypeAlias = Sequence[tuple[str, Picture]]  # each with the name of its document


class Tables(ABC):
    """Tables in the form that a `dreamkit.data.batch.Collator` takes as `computed`."""

    @abstractmethod
    def rows(self, table: str, pictures: NamedPictures) -> dict[str, Tensor] | None:
        """Return the tensors (N, ...) of a table for N images; None if there is no such table."""

    def features(self, pictures: NamedPictures) -> Tensor | None:
        rows = self.rows("features", pictures)
        return None if rows is None else rows["features"]

    def moments(self, pictures: NamedPictures) -> Moments | None:
        rows = self.rows("latents", pictures)
        if rows is None:
            return None
        extras = {name.removeprefix(EXTRAS): rows[name] for name in rows if name.startswith(EXTRAS)}
        return Moments(rows["mean"], rows.get("std"), extras)


class Cache(Tables):
    """The tables of a folder. `dreamkit.cache.model_check.open_cache` compares it with a model first.

    Raises:
        CacheError: a file cannot be read, its rows are not those of the manifest, or (`rows`) an image is missing.
    """

    def __init__(self, folder: Path, manifest: CacheManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.shards = {
            table: Shards([folder / shard_name(table, number) for number in range(record["shards"])])
            for table, record in manifest.tables.items()
        }
        problems = []
        for table, shards in self.shards.items():
            record = manifest.tables[table]
            expected = (record["images"] + 1, record["tensors"])  # one more for the blank image
            actual = (len(shards), shards.tensors())
            if actual != expected:
                kinds = [excerpt(str(tensors)) for _, tensors in (expected, actual)]
                problems.append(
                    f"{table}: expected {count(expected[0], 'row')} of {kinds[0]}, got {actual[0]} of {kinds[1]}"
                )
        if problems:
            raise manifest.damaged(folder, problems)

    def __str__(self) -> str:
        return self.manifest.summary(self.folder)

    def rows(self, table: str, pictures: NamedPictures) -> dict[str, Tensor] | None:
        if table not in self.shards:
            return None
        places = []
        for document, picture in pictures:
            place = self.shards[table].find(picture_key(picture))
            if place is None:
                raise CacheError(
                    f"{document}: the cache {self.folder} has no {table} of one of its images ({picture.width} x "
                    f"{picture.height}, {picture.mode}): data was added or changed after the cache was written; "
                    f"{recreate_hint(self.folder)}"
                )
            places.append(place)
        return self.shards[table].rows(places)
