"""The work on a cache from open data and prepared parts: its two stages, and the manifest at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from typing import Any, NamedTuple

from dreamkit.cache.block_reads import BlockReader
from dreamkit.cache.cached_parts import CachedParts
from dreamkit.cache.fill import COMPUTED, computed_files, fill
from dreamkit.cache.listing import LISTED, BadDocuments, documents_per_block, finished_lists, list_images
from dreamkit.cache.manifest import CacheManifest, Table, TableRecord
from dreamkit.cache.model_check import table_identity
from dreamkit.cache.new_images import NewImages
from dreamkit.cache.recipe_check import data_records
from dreamkit.cache.shared_blocks import SharedBlocks
from dreamkit.cache.skipped_file import write_skipped
from dreamkit.cache.unfinished import FORMAT, Stage, Unfinished
from dreamkit.data.dataset import Dataset
from dreamkit.data.fingerprint import read_fingerprints
from dreamkit.data.skipped import SKIPPED, SkippedSummary
from dreamkit.distributed import gathered, is_main, together
from dreamkit.errors import CacheError
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage import folders
from dreamkit.storage.writing import require_space

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


class CachingProgress(NamedTuple):
    """Progress of all processes: documents that are `listed`, or rows that are `computed`."""

    stage: Stage
    done: int
    total: int


class CacheReport(NamedTuple):
    """A cache that was written.

    Attributes:
        manifest: its manifest.
        left_out: the reason for each requested table that it lacks.
        replaced: flag: it replaced another one.
        skipped: numbers of documents that cannot be used; the cache has a file that lists them.
        was_finished: flag: with `resume`, it was complete before, so nothing was computed.
    """

    manifest: CacheManifest
    left_out: dict[Table, str]
    replaced: bool
    skipped: SkippedSummary
    was_finished: bool = False


@dataclass
class Caching:
    """The work on a cache. Every process has one, and calls its methods together with the others."""

    recipe: Recipe
    registry: Registry
    work: Unfinished
    parts: CachedParts
    datasets: Sequence[Dataset]
    shard_bytes: int
    block_documents: int | None
    on_progress: Callable[[CachingProgress], None]

    @cached_property
    def reader(self) -> BlockReader:
        return BlockReader(self.datasets, self.recipe.train, self.parts.least_side)

    @cached_property
    def description(self) -> dict[str, Any]:
        """Recipe, data and weights of the cache, as plain values. The weights are hashed: one process reads this."""
        return {
            "format": FORMAT,
            "dreamkit": version("dreamkit-core"),
            "documents_per_block": self._documents_per_block(),
            "shard_bytes": self.shard_bytes,
            "tables": {
                table: {
                    "identity": table_identity(self.parts.model, self.recipe, self.registry, table),
                    "tensors": builder.tensors,
                }
                for table, builder in self.parts.builders.items()
            },
            "data": data_records(self.recipe.data, self.datasets),
            "fingerprints": read_fingerprints(self.datasets),
        }

    def open(self, resume: bool) -> CacheManifest | None:
        """Open the folder of unfinished work. With `resume`, return the manifest of a cache that is finished already.

        Raises:
            CacheError: the work or cache to resume is of another recipe, other data or other weights.
            OutputError: the folder cannot be written.
        """
        finished = None
        with together():
            if is_main():
                description = self.description
                if resume and not self.work.has_blocks():
                    finished = self.work.finished_cache(description)
                else:
                    self.work.open(description, resume=resume)
        return gathered(finished)[0]

    def run(self, may_replace: bool) -> CacheReport:
        """List the images, compute their rows and put the cache in place.

        Raises:
            CacheError: the data has no image for any table, or too many documents cannot be used.
            OutputError: a file cannot be written.
        """
        tables = self.parts.builders
        size = self._documents_per_block()
        blocks = -(-len(self.reader) // size)
        limit = self.recipe.train.max_skipped
        shared = self._shared(LISTED, blocks, len(self.reader))
        list_images(self.reader, self.work, shared, tables, size, BadDocuments(len(self.reader), limit))
        bad = BadDocuments(len(self.reader), limit)
        images = NewImages.of(
            bad.counted(finished_lists(self.work, blocks)),
            {table: builder.blank_key for table, builder in tables.items()},
            {table: builder.rows_per_file(self.shard_bytes) for table, builder in tables.items()},
        )
        with together():
            self._require_rows(images)
        fill(self.reader, self.work, self._shared(COMPUTED, len(images.blocks), images.rows), images, tables)
        replaced = (self.work.out / CacheManifest.FILE).is_file()
        manifest = None
        with together():
            if is_main():
                manifest = self._finish(images, blocks)
                folders.put_in_place(self.work.tables, self.work.out, may_replace=may_replace)
                self.work.remove()
        manifest, replaced = gathered((manifest, replaced))[0]
        assert manifest is not None, "the main process has written it"
        return CacheReport(manifest, self.parts.left_out, replaced, bad.summary)

    def _shared(self, stage: Stage, blocks: int, total: int) -> SharedBlocks:
        def show(done: int) -> None:
            self.on_progress(CachingProgress(stage, done, total))

        return SharedBlocks(self.work, stage, blocks, show)

    def _documents_per_block(self) -> int:
        return self.block_documents or documents_per_block(len(self.reader))

    def _require_rows(self, images: NewImages) -> None:
        """Leave out tables without images; check that one is left, and that the others fit on the disk.

        Raises:
            CacheError: no table is left.
            OutputError: there is too little space.
        """
        for table, found in images.tables.items():
            if not len(found.keys):
                self.parts.reasons[table] = NO_IMAGES[table]
        if None not in self.parts.reasons.values() and is_main():
            self.work.remove()  # nothing to continue
        self.parts.require_table()
        if is_main():
            rows = {table: len(found.keys) for table, found in images.tables.items()}
            size = sum(self.parts.row_bytes[table] * number for table, number in rows.items())
            written = sum(path.stat().st_size for path in self.work.tables.iterdir())
            require_space(self.work.out, size - written)

    def _finish(self, images: NewImages, blocks: int) -> CacheManifest:
        """Complete the folder of the tables: add the list of skipped documents, and the manifest.

        Raises:
            CacheError: a block was damaged since it was written.
            OutputError: a file cannot be written.
        """
        folder = self.work.tables
        files: dict[str, folders.FileRecord] = {}
        for number in range(len(images.blocks)):
            if not (found := computed_files(self.work, number, read=False)):
                raise CacheError(
                    f"block {number} of the rows in {self.work.folder} was damaged meanwhile; continue with --resume"
                )
            files |= found
        for path in folder.iterdir():  # of a command that was killed
            if path.name not in files:
                folders.remove_folder(path)
        skipped = (each.skipped for each in finished_lists(self.work, blocks))
        write_skipped(folder / SKIPPED, chain.from_iterable(skipped))
        description = self.description
        tables: dict[str, TableRecord] = {
            table: {
                "identity": description["tables"][table]["identity"],
                "images": len(images.tables[table].keys),
                "shards": sum(
                    len(images.files(block, table)) for block in images.blocks if table in block.tables
                ),
                "tensors": builder.tensors,
            }
            for table, builder in self.parts.builders.items()
            if self.parts.reasons[table] is None
        }
        manifest = CacheManifest(
            format=CacheManifest.FORMAT,
            dreamkit=version("dreamkit-core"),
            data=description["data"],
            tables=tables,
            files=folders.describe_files(folder, files),
        )
        manifest.write(folder)
        return manifest
