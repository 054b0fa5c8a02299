"""The report of a recipe's data: its sources, and the rows that their documents fill."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dreamkit.data.sequence import Sequence as Tokens
from dreamkit.document import Document, Image, Text
from dreamkit.errors import RecipeProblem, excerpt
from dreamkit.inspection.run_data import PackedBatch

EXAMPLE: Final = 160  # characters of a document in short
MOST_SIZES: Final = 1000  # of images that are counted apart; others are "other"


@dataclass
class Source:
    """The report of a data set.

    Attributes:
        key: key of the data set in the recipe.
        name: name of its reader.
        documents: number of documents; None if it cannot be opened.
        read: number of documents that were read.
        usable: number of those that can be trained on; the sums below are over them.
        too_long: number of documents longer than a row, which the recipe cuts or skips.
        long_example: name and tokens of the first of these.
        images_cut: number of images that are cut off them.
        tokens: sum of the tokens.
        longest: greatest number of tokens of one.
        learned: sum of the tokens that are learned.
        image_tokens: sum of the tokens of images: their slots, and the tokens around them.
        images_read: number of images to read.
        images_drawn: number of images to draw.
        image_sizes: number of images by size and mode.
        example: the first document, in short.
        duplicates: number of documents whose content is in the held-out data.
    """

    key: str
    name: str
    documents: int | None = None
    read: int = 0
    usable: int = 0
    too_long: int = 0
    long_example: str | None = None
    images_cut: int = 0
    tokens: int = 0
    longest: int = 0
    learned: int = 0
    image_tokens: int = 0
    images_read: int = 0
    images_drawn: int = 0
    image_sizes: dict[str, int] = field(default_factory=dict)
    example: str | None = None
    duplicates: int = 0

    def add_document(self, document: Document) -> None:
        """Add a document that was read."""
        self.read += 1
        if self.example is None:
            self.example = summary(document)
        for image in document.images:
            width, height = image.picture.size
            size = f"{width} x {height} {image.picture.mode}"
            if size not in self.image_sizes and len(self.image_sizes) >= MOST_SIZES:
                size = "other"
            self.image_sizes[size] = self.image_sizes.get(size, 0) + 1

    def add_sequence(self, sequence: Tokens, vision_tokens: int, dream_queries: int) -> None:
        """Add the sequence of a document that was read."""
        self.usable += 1
        self.tokens += len(sequence)
        self.longest = max(self.longest, len(sequence))
        self.learned += sequence.targets
        self.images_read += len(sequence.reads)
        self.images_drawn += len(sequence.draws)
        self.image_tokens += len(sequence.reads) * (vision_tokens + 2)
        self.image_tokens += len(sequence.draws) * (dream_queries + 2)


@dataclass
class Packing:
    """The rows of the first batches of a training: their tokens, and those that are not padding."""

    batches: int = 0
    documents: int = 0
    rows: int = 0
    tokens: int = 0
    filled: int = 0

    def add(self, documents: int, batches: Iterable[PackedBatch]) -> None:
        """Add the batches of an update of a number of documents; none if they cannot be trained on."""
        self.documents += documents
        for batch in batches:
            self.batches += 1
            self.rows += len(batch.rows)
            self.tokens += len(batch.rows) * batch.width
            self.filled += batch.filled


@dataclass(frozen=True)
class DataReport:
    """The report of a recipe's data.

    Attributes:
        sources: a report for each data set.
        packing: the rows of the first batches; None if there are none.
        held_out: number of held-out documents that were compared; None without held-out data.
        problems: what training would refuse or skip, and documents that are also held out.
        notes: lines about what may be a mistake.
        unlisted: numbers of problems that are not in `problems`, by their keys: a data set may have too many.
    """

    sources: tuple[Source, ...]
    packing: Packing | None
    held_out: int | None
    problems: tuple[RecipeProblem, ...]
    notes: tuple[str, ...]
    unlisted: dict[str, int]


def summary(document: Document) -> str:
    """Return a document in short: texts in quotes, images in brackets, roles before them."""
    parts = []
    role = None
    for segment in document:
        if segment.role != role:
            role = segment.role
            parts.append(f"{role}:")
        parts.append(_segment_summary(segment))
    return excerpt(" ".join(parts), EXAMPLE)


def _segment_summary(segment: Text | Image) -> str:
    if isinstance(segment, Text):
        return f"'{excerpt(segment.text, 40)}'"
    width, height = segment.picture.size
    use = " and ".join(verb for verb, flag in (("draw", segment.draw), ("read", segment.read)) if flag)
    return f"[{use} {width} x {height}]"
