"""The first stage of the work on a cache: the list of all images in the data, by the hashes of their content."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from dreamkit.cache.block_reads import Block, BlockReader, ReadDocument
from dreamkit.cache.manifest import Table
from dreamkit.cache.shards import KEY_BYTES, picture_key
from dreamkit.cache.shared_blocks import SharedBlocks
from dreamkit.cache.unfinished import Stage, Unfinished
from dreamkit.data.skipped import Skipped, SkippedSummary, is_beyond
from dreamkit.document import Document, Image
from dreamkit.errors import CacheError

LISTED: Final[Stage] = "listed"
DOCUMENTS_PER_BLOCK: Final = 1024
MOST_BLOCKS: Final = 4096  # more documents are in larger blocks


@dataclass
class ImageList:
    """The images of consecutive documents, each at its first document among these.

    Attributes:
        images: for each table, numbers of documents by the keys of images, in their order.
        skipped: documents that cannot be used.
    """

    images: dict[Table, dict[bytes, int]]
    skipped: list[Skipped] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """Return the list as plain values."""
        return {
            "keys": {table: b64encode(b"".join(images)).decode() for table, images in self.images.items()},
            "documents": {table: [*images.values()] for table, images in self.images.items()},
            "skipped": [asdict(document) for document in self.skipped],
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> ImageList:
        """Return the list of these plain values."""
        keys = {table: b64decode(text) for table, text in content["keys"].items()}
        images: Any = {
            table: {
                keys[table][KEY_BYTES * row : KEY_BYTES * (row + 1)]: document
                for row, document in enumerate(documents)
            }
            for table, documents in content["documents"].items()
        }
        return cls(images, [Skipped(**each) for each in content["skipped"]])


class BadDocuments:
    """Numbers of documents that cannot be used, and their limit.

    The limit holds for all documents of the data together, so it does not depend on the processes that read them.
    """

    def __init__(self, documents: int, max_skipped: float) -> None:
        self.documents, self.max_skipped = documents, max_skipped
        self.summary = SkippedSummary()
        self.first: Skipped | None = None

    def add(self, skipped: Sequence[Skipped]) -> None:
        """Count documents.

        Raises:
            CacheError: there are too many, whatever the other documents are.
        """
        for each in skipped:
            self.first = self.first or each
            self.summary.add(each)
        bad = self.summary.documents
        if self.first is not None and is_beyond(self.max_skipped, bad, self.documents):
            raise CacheError(
                f"expected at most {self.max_skipped:.2%} bad documents (train.max_skipped), got {bad:,} of "
                f"{self.documents:,}; {self.summary.most_common()}; the first is {self.first.text}; correct the data "
                "or raise train.max_skipped"
            )

    def counted(self, lists: Iterable[ImageList]) -> Iterator[ImageList]:
        """Yield lists whose bad documents are counted.

        Raises:
            CacheError: there are too many.
        """
        for each in lists:
            self.add(each.skipped)
            yield each


class ListedBatch(NamedTuple):
    """The number of documents in a batch; for each table, their images; and those that cannot be used."""

    documents: int
    images: dict[Table, dict[bytes, int]]
    skipped: list[Skipped]


@dataclass
class Lister:
    """The listing of a batch, for `tables`. It runs in the processes that read."""

    tables: Collection[Table]

    def __call__(self, items: Sequence[ReadDocument]) -> ListedBatch:
        images: dict[Table, dict[bytes, int]] = {table: {} for table in self.tables}
        skipped = []
        for number, document in items:
            if isinstance(document, Skipped):
                skipped.append(document)
                continue
            for image, key in keyed_images(document):
                for table in tables_of(image):
                    if table in images:
                        images[table].setdefault(key, number)
        return ListedBatch(len(items), images, skipped)


def keyed_images(document: Document) -> Iterator[tuple[Image, bytes]]:
    """Yield the images of a document with their keys."""
    for image in document.images:
        yield image, picture_key(image.picture)


def tables_of(image: Image) -> list[Table]:
    """Return the tables that have a row of an image."""
    uses: dict[Table, bool] = {"features": image.read, "latents": image.draw}
    return [table for table, is_used in uses.items() if is_used]


def documents_per_block(documents: int) -> int:
    """Return the size of a block of the first stage."""
    return max(DOCUMENTS_PER_BLOCK, -(-documents // MOST_BLOCKS))


def list_images(
    reader: BlockReader,
    work: Unfinished,
    shared: SharedBlocks,
    tables: Collection[Table],
    size: int,
    bad: BadDocuments,
) -> None:
    """List the images of all documents in blocks of `size`; return when each process has finished its blocks.

    Raises:
        DocumentError: a document cannot be used, and the recipe's policy is to stop.
        CacheError: too many documents cannot be used.
        OutputError: a list cannot be written.
    """

    def missing() -> Iterator[Block]:
        for number in shared.taken():
            documents = range(number * size, min((number + 1) * size, len(reader)))
            if work.block(LISTED, number) is None:
                yield Block(number, documents)
            else:
                shared.advance(len(documents))

    found = ImageList({table: {} for table in tables})
    for block, is_last, batch in reader.read(missing(), Lister(tables)):
        for table, images in batch.images.items():
            for key, document in images.items():
                found.images[table].setdefault(key, document)
        found.skipped += batch.skipped
        bad.add(batch.skipped)
        if is_last:
            work.finish_block(LISTED, block.number, found.content())
            found = ImageList({table: {} for table in tables})
        shared.advance(batch.documents)
    shared.finish()


def finished_lists(work: Unfinished, blocks: int) -> Iterator[ImageList]:
    """Yield the lists of all blocks, in their order.

    Raises:
        CacheError: one was damaged since it was written.
    """
    for number in range(blocks):
        content = work.block(LISTED, number)
        if content is None:
            raise CacheError(
                f"block {number} of the lists in {work.folder} was damaged meanwhile; continue with --resume"
            )
        yield ImageList.from_content(content)
