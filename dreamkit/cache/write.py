"""Computes the latents and features of all pictures of a recipe's data once, and writes them to a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from PIL.Image import Image as Picture
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from dreamkit.build.build import build
from dreamkit.cache.data import data_records
from dreamkit.cache.keys import picture_key
from dreamkit.cache.maker import (
    Preprocess,
    compute,
    maker,
    preprocess_of,
    preprocessed,
    row_bytes,
    training_precision,
    why_not,
)
from dreamkit.cache.manifest import TABLES, CacheManifest, Table, TableRecord
from dreamkit.cache.read import EXTRAS
from dreamkit.cache.shards import ShardWriter
from dreamkit.checkpoints.load import load_weights
from dreamkit.data.dataset import Dataset
from dreamkit.data.sequence import blank_picture
from dreamkit.document import Document, Image
from dreamkit.errors import CacheError, did_you_mean
from dreamkit.model.model import DreamModel
from dreamkit.progress.bars import CachingProgress
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage import folders

SHARD_BYTES = 512 * 2**20
DOCUMENTS, PICTURES = 8, 32  # looked through, and computed, at a time
NO_PICTURES = {"features": "the data has no image to read", "latents": "the data has no image to draw"}
PIXELS = "pixels"  # of what is preprocessed, the tensor that is computed from

OnProgress: TypeAlias = Callable[[CachingProgress], None]


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
            model = build(recipe, registry)
            if recipe.init is not None:
                load_weights(model, recipe.init)
        model.set_trainable(recipe.train.trainable)
        model.eval()
        reasons: dict[Table, str | None] = {t: why_not(model, t) for t in TABLES if t in only}
        _refuse_without_table(reasons)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        makers = {table: maker(model, recipe, table, device) for table in reasons if reasons[table] is None}
        makings = {t: _Making(t, model, device, ShardWriter(partial, t, shard_bytes)) for t in makers}
        sizes = {table: row_bytes(model, recipe, table, device) for table in makers}
        on_start(Estimate(sizes, sum(map(len, datasets)), shutil.disk_usage(partial).free))
        with training_precision(recipe, device):
            _fill(makings, datasets, recipe.train.workers, on_progress)
        reasons |= {table: NO_PICTURES[table] for table, making in makings.items() if not making.known}
        _refuse_without_table(reasons)
        tables: dict[str, TableRecord] = {
            table: makings[table].writer.record(makers[table]) for table in reasons if reasons[table] is None
        }
        data = data_records(recipe.data, datasets)
        manifest = CacheManifest(
            format=CacheManifest.FORMAT,
            dreamkit=version("dreamkit"),
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
    if not overwrite and (what := folders.occupied(folder)):
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


def _fill(
    makings: Mapping[Table, _Making], datasets: Sequence[Dataset], workers: int, on_progress: OnProgress
) -> None:
    """Goes through all documents, with as many processes that read them."""
    documents: Any = ConcatDataset([cast(Any, dataset) for dataset in datasets])
    reader = _Reader({table: preprocess_of(making.model, table) for table, making in makings.items()})
    looked, pictures = 0, set[bytes]()
    on_progress(CachingProgress(0, len(documents), 0))
    for found in DataLoader(documents, DOCUMENTS, num_workers=workers, collate_fn=reader):
        for table, (keys, inputs) in found.pictures.items():
            makings[table].take(keys, inputs)
            pictures.update(keys)
        looked += found.documents
        on_progress(CachingProgress(looked, len(documents), len(pictures)))
    # a batch without an image to read or to draw is completed by this one
    blank = _Reader(reader.preprocess)([Document((Image(blank_picture(), draw=True),), name="blank")])
    for table, making in makings.items():
        if making.known:
            making.take(*blank.pictures[table])
            making.compute()
            making.writer.flush()


class _Found(NamedTuple):
    """How many documents were looked through, and by table the keys of their pictures and what these became."""

    documents: int
    pictures: dict[Table, tuple[list[bytes], dict[str, Tensor]]]


@dataclass
class _Reader:
    """Preprocesses the pictures of documents; each once, as far as this process knows."""

    preprocess: Mapping[Table, Preprocess]
    known: dict[Table, set[bytes]] = field(default_factory=dict)

    def __call__(self, documents: Sequence[Document]) -> _Found:
        new: dict[Table, dict[bytes, Picture]] = {table: {} for table in self.preprocess}
        for image in (image for document in documents for image in document.images):
            key = picture_key(image.picture)
            for table, wanted in (("features", image.read), ("latents", image.draw)):
                if wanted and table in new and key not in self.known.setdefault(table, set()):
                    new[table][key] = image.picture
        found: dict[Table, tuple[list[bytes], dict[str, Tensor]]] = {}
        for table, pictures in new.items():
            self.known.setdefault(table, set()).update(pictures)
            if pictures:
                pixels, extras = preprocessed(self.preprocess[table], [*pictures.values()])
                found[table] = (
                    [*pictures],
                    {PIXELS: pixels, **{EXTRAS + name: extras[name] for name in extras}},
                )
        return _Found(len(documents), found)


@dataclass
class _Making:
    """A table in the making: pictures wait until they are a batch."""

    table: Table
    model: DreamModel
    device: torch.device
    writer: ShardWriter
    known: set[bytes] = field(default_factory=set)
    waiting: dict[bytes, dict[str, Tensor]] = field(default_factory=dict)

    def take(self, keys: Sequence[bytes], inputs: Mapping[str, Tensor]) -> None:
        """Computes pictures that are new; `inputs` (N, ...) are what they were preprocessed to."""
        for number, key in enumerate(keys):
            if key in self.known:
                continue
            self.known.add(key)
            self.waiting[key] = {name: tensor[number] for name, tensor in inputs.items()}
            if len(self.waiting) == PICTURES:
                self.compute()

    def compute(self) -> None:
        """Computes and writes what waits."""
        if not self.waiting:
            return
        rows = [*self.waiting.values()]
        inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        pixels = inputs.pop(PIXELS).to(self.device)
        made = {name: tensor.cpu() for name, tensor in compute(self.model, self.table, pixels).items()}
        self.writer.add([*self.waiting], made | inputs)
        self.waiting = {}
