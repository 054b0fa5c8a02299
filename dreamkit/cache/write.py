"""Writes a cache: a folder with the latents and features of all pictures of a recipe's data, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.cache.fill import OnProgress, TableBuilder, fill
from dreamkit.cache.maker import maker, row_bytes, training_precision, why_not
from dreamkit.cache.manifest import TABLES, CacheManifest, Table, TableRecord
from dreamkit.cache.provenance import data_records
from dreamkit.cache.shards import ShardWriter
from dreamkit.checkpoints.load import load_weights
from dreamkit.data.dataset import Dataset
from dreamkit.errors import CacheError, did_you_mean
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage import folders

SHARD_BYTES = 512 * 2**20
NO_PICTURES = {"features": "the data has no image to read", "latents": "the data has no image to draw"}


class Estimate(NamedTuple):
    """The bytes that a picture takes in each table, the documents to go through, and the bytes free on the disk."""

    picture: dict[Table, int]
    documents: int
    free: int

    @property
    def most(self) -> int:
        """What it will take where each document has one picture for each table, and none comes twice."""
        return self.documents * sum(self.picture.values())


class Made(NamedTuple):
    """The manifest of a cache, why it lacks a table that it was asked for, and whether there was one."""

    manifest: CacheManifest
    reasons: dict[Table, str]
    replaced: bool


def make_cache(
    recipe: Recipe,
    registry: Registry,
    out: Path | str,
    *,
    only: Collection[str] = TABLES,
    overwrite: bool = False,
    model: DreamModel | None = None,
    datasets: Sequence[Dataset] | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_start: Callable[[Estimate], None] = lambda estimate: None,
    on_progress: OnProgress = lambda progress: None,
) -> Made:
    """Writes to the folder `out`, whole or not at all, what the frozen parts of `recipe` make of its pictures.

    These are the tables of `only` that can be made, and that the data has pictures for. `model` and `datasets` stand in
    for those of the recipe, as in `dreamkit.training.run.train_recipe`. With `overwrite`, a cache in `out` is replaced.

    Raises:
        CacheError: nothing can be cached, there is no data, `out` is in use, or this is one process of several.
    """
    out = Path(out).absolute()
    for table in only:
        _refuse_unknown(table)
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise CacheError(
            f"caching runs in one process, but WORLD_SIZE is {processes}; start `dreamkit cache` without torchrun"
        )
    _refuse_to_replace(out, overwrite)
    if datasets is None:
        datasets = [registry.get("dataset", section.name)(section.config) for section in recipe.data]
    if not any(len(dataset) for dataset in datasets):
        raise CacheError(
            "there are no documents to cache the pictures of; name a data set that has some under data"
        )
    partial = _begin(out)
    try:
        if model is None:
            model = build(fit(recipe, registry))
            if recipe.init is not None:
                load_weights(model, recipe.init)
        model.set_trainable(recipe.train.trainable)
        model.eval()
        reasons: dict[Table, str | None] = {t: why_not(model, t) for t in TABLES if t in only}
        _refuse_without_table(reasons)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        makers = {table: maker(model, recipe, table, device) for table in reasons if reasons[table] is None}
        builders = {t: TableBuilder(t, model, device, ShardWriter(partial, t, shard_bytes)) for t in makers}
        sizes = {table: row_bytes(model, recipe, table, device) for table in makers}
        on_start(Estimate(sizes, sum(map(len, datasets)), shutil.disk_usage(partial).free))
        with training_precision(recipe, device):
            fill(builders, datasets, recipe.train.workers, on_progress)
        reasons |= {table: NO_PICTURES[table] for table, builder in builders.items() if not builder.known}
        _refuse_without_table(reasons)
        tables: dict[str, TableRecord] = {
            table: builders[table].writer.record(makers[table]) for table in reasons if reasons[table] is None
        }
        data = data_records(recipe.data, datasets)
        manifest = CacheManifest(
            format=CacheManifest.FORMAT,
            dreamkit=version("dreamkit-core"),
            data=data,
            tables=tables,
            files=folders.describe_files(partial),
        )
        manifest.write(partial)
        replaced = (out / CacheManifest.FILE).is_file()
        folders.commit(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    left_out = {table: reason for table, reason in reasons.items() if reason is not None}
    return Made(manifest, left_out, replaced)


def _refuse_unknown(table: str) -> None:
    """
    Raises:
        CacheError: there is no table of this name.
    """
    if table not in TABLES:
        raise CacheError(f"there is no table '{table}' to make; {did_you_mean(table, TABLES)}")


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    """
    Raises:
        CacheError: `folder` holds something that would be lost, and is not a cache that is to be overwritten.
    """
    CacheManifest.refuse_to_replace(folder, instead="name another folder by --out")
    if not overwrite and (what := folders.in_use_reason(folder)):
        raise CacheError(
            f"{folder} {what}; name a new folder by --out, or replace the cache in it by --overwrite"
        )


def _begin(folder: Path) -> Path:
    """The empty folder that `folder` is written to until it is whole.

    Raises:
        CacheError: it is there already.
    """
    try:
        return folders.begin(folder, alone=True)
    except FileExistsError as error:
        raise CacheError(
            f"{folders.partial_folder(folder)} is there: another `dreamkit cache` is writing {folder}, or one was "
            "killed; wait for it, or remove that folder"
        ) from error


def _refuse_without_table(reasons: Mapping[Table, str | None]) -> None:
    """
    Raises:
        CacheError: there is a reason against each table that is asked for.
    """
    if None not in reasons.values():
        listed = "".join(f"\n  {table}: {reason}" for table, reason in reasons.items())
        raise CacheError(f"there is nothing here that can be computed once and for all:{listed}")
