"""The batch that a plan assumes: documents of data, or documents that fill a row each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dreamkit.cache.manifest import CacheManifest
from dreamkit.cache.read import NamedPictures, Tables
from dreamkit.data.batch import Batch, Collator
from dreamkit.data.sequence import Sequence, Sequencer, blank_picture
from dreamkit.document import Document, Image
from dreamkit.errors import DreamkitError, count
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe


def batch_shapes(model: DreamModel, recipe: Recipe, images: int, documents: int) -> Batch:
    """Return the shapes of `full_batch` on the meta device, found from those of batches of 1 and 2 documents.

    All documents are alike, so each dimension grows by the same number with each of them.

    Raises:
        DreamkitError: a row has no room for this number of images.
    """
    one, two = (vars(full_batch(model, recipe, images, number)) for number in (1, 2))

    def extend(first: Any, second: Any) -> Any:
        if isinstance(first, int):
            return first + (documents - 1) * (second - first)
        if isinstance(first, Tensor):
            return first.new_empty(tuple(map(extend, first.shape, second.shape)), device="meta")
        return first

    # not shapes, but one for each document; the first row is a document's
    others = {
        "documents": ("",) * extend(len(one["documents"]), len(two["documents"])),
        "spans": one["spans"][:1] * (documents - 1) + one["spans"],
    }
    unused = dict.fromkeys(others)
    return Batch(**{**tree_map(extend, one | unused, two | unused), **others})


def collator(model: DreamModel, recipe: Recipe) -> Collator:
    """Return the collator of a training; the tables of `train.cache` are in its batches, as zeros."""
    folder = recipe.train.cache
    return model.collator(recipe, None if folder is None else _Zeros(CacheManifest.read(Path(folder))))


def full_batch(model: DreamModel, recipe: Recipe, images: int, documents: int) -> Batch:
    """Return a batch of documents of `train.max_length` tokens with `images` images, each drawn and read back.

    Every token of text is labelled.

    Raises:
        DreamkitError: a row has no room for this number of images.
    """
    sequencer = model.sequencer(recipe.train.max_length)
    most = most_images(sequencer)
    if not 0 <= images <= most:
        raise DreamkitError(
            f"expected --images from 0 to {most}, got {images}: a row has {count(sequencer.max_length, 'token')}, and "
            f"an image takes {_image_length(sequencer)}; lower --images or raise train.max_length"
        )
    return collator(model, recipe).collate([_full_row(sequencer, images)] * documents)


def most_images(sequencer: Sequencer) -> int:
    """Return the number of images, each drawn and read back, that fit into a row with the tokens around a document."""
    around = 1 if sequencer.language_model.spec.bos_id is None else 2
    return (sequencer.max_length - around) // _image_length(sequencer)


def _image_length(sequencer: Sequencer) -> int:
    return len(sequencer.dream_slots) + len(sequencer.read_slots) + 4


def _full_row(sequencer: Sequencer, images: int) -> Sequence:
    image = Image(blank_picture(), draw=True)
    row = sequencer.sequence(Document((image,) * images)) if images else Sequence("row")
    end = sequencer.language_model.spec.eos_ids[0]
    row.append([end] * (sequencer.max_length - len(row)), train_on=True)
    return row


class _Zeros(Tables):
    """A cache with a row of zeros for every image, of the shapes and dtypes in a manifest."""

    def __init__(self, manifest: CacheManifest) -> None:
        self.manifest = manifest

    def rows(self, table: str, pictures: NamedPictures) -> dict[str, Tensor] | None:
        if table not in self.manifest.tables:
            return None
        tensors = self.manifest.tables[table]["tensors"]
        return {
            name: torch.zeros(len(pictures), *record["shape"], dtype=getattr(torch, record["dtype"]))
            for name, record in tensors.items()
        }
