"""The batch that is planned for: as many documents as the recipe says, each filling a row."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dreamkit.cache.manifest import CacheManifest
from dreamkit.cache.read import NamedPictures, Tables
from dreamkit.data.batch import Batch, Collator
from dreamkit.data.sequence import Sequence, Sequencer, blank_picture
from dreamkit.errors import DreamkitError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe


def full_batch(model: DreamModel, recipe: Recipe, images: int) -> Batch:
    """A batch of documents of `train.max_length` tokens with `images` images, each drawn and read back.

    Every token of text is learned. What `train.cache` holds of images is in the batch.

    Raises:
        DreamkitError: no row holds so many images.
    """
    sequencer = model.sequencer(recipe.train.max_length)
    collator = Collator(
        sequencer,
        model.vision_encoder.preprocess,
        model.image_decoder.preprocess,
        packing=recipe.train.packing,
        condition_drop=recipe.loss.condition_drop,
        computed=None if recipe.train.cache is None else _Zeros(CacheManifest.read(Path(recipe.train.cache))),
    )
    most = most_images(sequencer)
    if not 0 <= images <= most:
        raise DreamkitError(
            f"--images {images}, but a row of {sequencer.max_length} tokens holds 0 to {most}, each drawn and read "
            f"back in {_image_length(sequencer)}; change it, or train.max_length"
        )
    return collator.collate([_row(sequencer, images)] * recipe.train.batch_size)


def most_images(sequencer: Sequencer) -> int:
    """How many images, each drawn and read back, a row holds between its first token and its last."""
    return (sequencer.max_length - 2) // _image_length(sequencer)


def _image_length(sequencer: Sequencer) -> int:
    return len(sequencer.dream_slots) + len(sequencer.read_slots) + 4


def _row(sequencer: Sequencer, images: int) -> Sequence:
    blank = blank_picture()
    end = sequencer.language_model.spec.eos_ids[0]
    row = Sequence("row")
    row.append([end], train_on=True)
    for _ in range(images):
        row.append([sequencer.dream_start], train_on=True)
        row.draws.append((len(row), blank))
        row.append([*sequencer.dream_slots, sequencer.dream_end, sequencer.image_start], train_on=False)
        row.reads.append((len(row), blank))
        row.append([*sequencer.read_slots, sequencer.image_end], train_on=False)
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
