"""Writing of a cache: a folder that appears only when it is complete."""

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
from dreamkit.cache.manifest import TABLES, CacheManifest, Table, TableRecord
from dreamkit.cache.model_check import table_identity, uncacheable_reason
from dreamkit.cache.recipe_check import data_records
from dreamkit.cache.shards import ShardWriter
from dreamkit.cache.skipped_file import SkippedFile
from dreamkit.checkpoints.inputs import open_inputs
from dreamkit.checkpoints.load import load_weights
from dreamkit.data.dataset import Dataset
from dreamkit.data.skipped import SKIPPED, SkippedSummary
from dreamkit.errors import CacheError, did_you_mean
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage import folders
from dreamkit.storage.paths import output_folder

SHARD_BYTES = 512 * 2**20
NO_IMAGES = {"features": "the data has no image to read", "latents": "the data has no image to draw"}


class Estimate(NamedTuple):
    """The bytes that one image takes in each table, the number of documents, and the free bytes of the disk."""

    row_bytes: dict[Table, int]
    documents: int
    free_bytes: int

    @property
    def most_bytes(self) -> int:
        """The size of the tables for one image per table in each document, all of them different."""
        return self.documents * sum(self.row_bytes.values())


class CacheReport(NamedTuple):
    """A cache that was written.

    Attributes:
        manifest: its manifest.
        left_out: the reason for each requested table that it lacks.
        replaced: flag: it replaced another one.
        skipped: numbers of documents that cannot be used; the cache has a file that lists them.
    """

    manifest: CacheManifest
    left_out: dict[Table, str]
    replaced: bool
    skipped: SkippedSummary


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
) -> CacheReport:
    """Write the outputs of the frozen parts of `recipe` for the images of its data to the folder `out`.

    The folder appears only when it is complete. It has the tables of `only` that can be cached and that the data has
    images for. `model` and `datasets` replace those of the recipe, as in `dreamkit.training.run.train_recipe`.
    `overwrite` allows replacing a cache in `out`.

    Raises:
        CacheError: no table can be cached, `out` is in use, or this is one process of several.
        OutputError: `out` cannot be written, or another command is writing it.
        RecipeError: the parts do not fit each other. A data set, its first document or `recipe.init` cannot be read;
            this shows before any weights are read.
    """
    out = output_folder(out)
    for table in only:
        if table not in TABLES:
            raise CacheError(f"unknown table '{table}'; {did_you_mean(table, TABLES)}")
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise CacheError(
            f"caching runs in one process, but WORLD_SIZE is {processes}; start `dreamkit cache` without torchrun"
        )
    with folders.atomic_folder(out) as partial:
        _refuse_to_replace(out, overwrite)
        datasets = open_inputs(recipe, registry, datasets, with_init=model is None).require_datasets()
        if model is None:
            model = build(fit(recipe, registry))
            if recipe.init is not None:
                load_weights(model, recipe.init)
        model.set_trainable(recipe.train.trainable)
        model.eval()
        reasons: dict[Table, str | None] = {t: uncacheable_reason(model, t) for t in TABLES if t in only}
        _refuse_without_table(reasons)
        cacheable = [table for table in reasons if reasons[table] is None]
        identities = {table: table_identity(model, recipe, registry, table) for table in cacheable}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bfloat16"):
            builders = {
                t: TableBuilder(t, model, device, ShardWriter(partial, t, shard_bytes)) for t in cacheable
            }
            sizes = {table: builder.row_bytes for table, builder in builders.items()}
            on_start(Estimate(sizes, sum(map(len, datasets)), shutil.disk_usage(partial).free))
            skipped = SkippedFile(partial / SKIPPED)
            fill(builders, datasets, recipe.train, on_progress, skipped)
            reasons |= {table: NO_IMAGES[table] for table in cacheable if not builders[table].finish()}
        _refuse_without_table(reasons)
        tables: dict[str, TableRecord] = {
            table: builders[table].writer.record(identities[table])
            for table in reasons
            if reasons[table] is None
        }
        manifest = CacheManifest(
            format=CacheManifest.FORMAT,
            dreamkit=version("dreamkit-core"),
            data=data_records(recipe.data, datasets),
            tables=tables,
            files=folders.describe_files(partial),
        )
        manifest.write(partial)
        replaced = (out / CacheManifest.FILE).is_file()
    left_out = {table: reason for table, reason in reasons.items() if reason is not None}
    return CacheReport(manifest, left_out, replaced, skipped.summary)


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    """Raise if writing to `folder` would lose something that `overwrite` does not allow to lose.

    Raises:
        CacheError: `folder` is a file, holds something else than a cache, or holds a cache that is not to be replaced.
    """
    CacheManifest.refuse_to_replace(folder, instead="pass another folder with --out")
    if not overwrite and (reason := folders.in_use_reason(folder)):
        raise CacheError(
            f"{folder} {reason}; pass a new folder with --out, or replace the cache with --overwrite"
        )


def _refuse_without_table(reasons: Mapping[Table, str | None]) -> None:
    """Raise if there is a reason against each requested table.

    Raises:
        CacheError: no table is left.
    """
    if None not in reasons.values():
        listed = "".join(f"\n  {table}: {reason}" for table, reason in reasons.items())
        raise CacheError(f"nothing can be cached:{listed}")
