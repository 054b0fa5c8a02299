"""Goes through the documents of a recipe's data, and computes the tables of their pictures, each picture once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from PIL.Image import Image as Picture
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from dreamkit.cache.computed import EXTRAS
from dreamkit.cache.keys import picture_key
from dreamkit.cache.maker import Preprocess, compute, preprocess_of, preprocessed
from dreamkit.cache.manifest import Table
from dreamkit.cache.shards import ShardWriter
from dreamkit.data.dataset import Dataset
from dreamkit.data.sequence import blank_picture
from dreamkit.document import Document, Image
from dreamkit.model.model import DreamModel

DOCUMENTS, PICTURES = 8, 32  # looked through, and computed, at a time
PIXELS = "pixels"  # of what is preprocessed, the tensor that is computed from


class CachingProgress(NamedTuple):
    """How many of all documents have been looked through, and how many pictures found in them, each counted once."""

    documents: int
    of: int
    pictures: int


OnProgress: TypeAlias = Callable[[CachingProgress], None]


@dataclass
class TableBuilder:
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


def fill(
    builders: Mapping[Table, TableBuilder], datasets: Sequence[Dataset], workers: int, on_progress: OnProgress
) -> None:
    """Goes through all documents, with as many processes that read them."""
    documents: Any = ConcatDataset([cast(Any, dataset) for dataset in datasets])
    reader = _Reader({table: preprocess_of(builder.model, table) for table, builder in builders.items()})
    looked, pictures = 0, set[bytes]()
    on_progress(CachingProgress(0, len(documents), 0))
    for found in DataLoader(documents, DOCUMENTS, num_workers=workers, collate_fn=reader):
        for table, (keys, inputs) in found.pictures.items():
            builders[table].take(keys, inputs)
            pictures.update(keys)
        looked += found.documents
        on_progress(CachingProgress(looked, len(documents), len(pictures)))
    # a batch without an image to read or to draw is completed by this one
    blank = _Reader(reader.preprocess)([Document((Image(blank_picture(), draw=True),), name="blank")])
    for table, builder in builders.items():
        if builder.known:
            builder.take(*blank.pictures[table])
            builder.compute()
            builder.writer.flush()


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
