"""The second stage of the work on a cache: the rows of all new images, in files that are final."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from PIL.Image import Image as Picture
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dreamkit.cache.block_reads import Block, BlockReader, ReadDocument
from dreamkit.cache.listing import keyed_images, tables_of
from dreamkit.cache.manifest import Table, shard_name
from dreamkit.cache.new_images import NewImages
from dreamkit.cache.shards import ShardWriter
from dreamkit.cache.shared_blocks import SharedBlocks
from dreamkit.cache.table_builder import Preprocess, TableBuilder, preprocess
from dreamkit.cache.unfinished import Stage, Unfinished
from dreamkit.data.skipped import Skipped
from dreamkit.data.workers import in_shared_memory
from dreamkit.errors import CacheError
from dreamkit.storage.folders import damaged_files, describe_file

COMPUTED: Final[Stage] = "computed"
CHANGED: Final = (
    "the data is not as listed before; restore it and use --resume, or begin again with --overwrite"
)


def fill(
    reader: BlockReader,
    work: Unfinished,
    shared: SharedBlocks,
    images: NewImages,
    builders: Mapping[Table, TableBuilder],
) -> None:
    """Compute the rows of all new images; return when each process has finished its blocks.

    Raises:
        DocumentError, CacheError: a document cannot be used, or lacks an image, although it had it before.
        OutputError: a file cannot be written.
    """

    def missing() -> Iterator[Block]:
        for number in shared.taken():
            if computed_files(work, number):
                shared.advance(images.blocks[number].rows)
            else:
                yield Block(number, images.blocks[number].documents.tolist())

    writers: dict[Table, ShardWriter] = {}
    preparation = _Preparation({table: builder.preprocess for table, builder in builders.items()}, images)
    for (number, _), is_last, batch in reader.read(missing(), preparation):
        block = images.blocks[number]
        for table, rows in block.tables.items():
            if table not in writers:
                writers[table] = ShardWriter(work.tables, table, images.rows_per_file[table], rows.first_file)
            if table in batch:
                builders[table].add(writers[table], *batch[table])
        if is_last:
            names = []
            for table, rows in block.tables.items():
                builders[table].finish(writers[table], has_blank=rows.has_blank)
                names += [shard_name(table, file) for file in images.files(block, table)]
            files = {name: describe_file(work.tables / name) for name in names}
            work.finish_block(COMPUTED, number, {"files": files})
            writers = {}
        shared.advance(sum(len(keys) for keys, _ in batch.values()))
    shared.finish()


def computed_files(work: Unfinished, number: int, *, read: bool = True) -> dict[str, Any]:
    """Return size and sha256 of the files of a block by their names; none if the block is missing or damaged.

    Without `read`, the files are compared by their sizes alone.
    """
    content = work.block(COMPUTED, number)
    if content is None or damaged_files(work.tables, content["files"], read=read):
        return {}
    files: dict[str, Any] = content["files"]
    return files


PreparedBatch: TypeAlias = dict[Table, tuple[list[bytes], dict[str, Tensor]]]  # keys and preprocessed tensors


@dataclass
class _Preparation:
    """The preprocessing of the new images of documents. It runs in the processes that read."""

    methods: Mapping[Table, Preprocess]
    images: NewImages

    def __call__(self, items: Sequence[ReadDocument]) -> PreparedBatch:
        pictures: dict[Table, dict[bytes, Picture]] = {table: {} for table in self.methods}
        for number, document in items:
            if isinstance(document, Skipped):
                raise CacheError(f"{document.text}; {CHANGED}")
            wanted = {table: set(images.keys_of(number)) for table, images in self.images.tables.items()}
            for image, key in keyed_images(document):
                for table in tables_of(image):
                    if key in wanted.get(table, ()):
                        wanted[table].remove(key)
                        pictures[table][key] = image.picture
            if any(wanted.values()):
                raise CacheError(f"{document.name}: one of its images has changed; {CHANGED}")
        batch = {
            table: ([*found], preprocess(self.methods[table], [*found.values()]))
            for table, found in pictures.items()
            if found
        }
        prepared: PreparedBatch = tree_map_only(Tensor, in_shared_memory, batch)
        return prepared
