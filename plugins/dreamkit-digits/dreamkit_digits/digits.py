"""The pictures: 1,797 real handwritten digits (UCI, as shipped with scikit-learn), as 16 x 16 RGB images.

The split is fixed: 1,400 digits to train with and 397 held out, stratified by digit. Neither
the demo nor the pretrained parts are trained on the held-out part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

from dreamkit import describe_value

Split = Literal["train", "heldout"]

IMAGE_SIZE = 16
"""Width and height of every picture, in pixels."""
TRAIN_SIZE = 1400
"""Digits in the training part; the remaining 397 of the 1,797 are held out."""
SPLIT_SEED = 0
INK_LEVELS = 16
"""The data set's 8 x 8 grids hold ink counts from 0 (paper) to 16."""


@dataclass(frozen=True, eq=False)
class Digits:
    """One part of the data set.

    pixels: (N, 16, 16, 3) uint8, ink light on dark; labels: (N,) int64, the digit 0..9 in each picture.
    Both arrays are read-only, because `load` hands the same ones to every caller.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return ((self.image(index), int(label)) for index, label in enumerate(self.labels))

    def image(self, index: int) -> Image.Image:
        """Return picture `index` as an RGB image of its own."""
        return Image.fromarray(self.pixels[index])

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, in order, as RGB images."""
        return [self.image(index) for index in range(len(self))]

    def of(self, digit: int) -> np.ndarray:
        """Return the indices of the pictures that show `digit`, ascending."""
        return np.flatnonzero(self.labels == digit)


@cache
def load(split: Split) -> Digits:
    """Return the "train" (1,400) or the "heldout" (397) part of the digits.

    Raises ValueError for any other name.
    """
    # imported here, because checking a recipe imports this file and needs no scikit-learn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if split not in ("train", "heldout"):
        raise ValueError(f"expected 'train' or 'heldout', got {describe_value(split)}")
    source = load_digits()
    train, heldout = train_test_split(
        np.arange(len(source.target)), train_size=TRAIN_SIZE, stratify=source.target, random_state=SPLIT_SEED
    )
    chosen = np.sort(train if split == "train" else heldout)
    pixels = np.stack([_enlarge(grid) for grid in source.images[chosen]])
    labels = source.target[chosen].astype(np.int64)
    pixels.setflags(write=False)
    labels.setflags(write=False)
    return Digits(pixels, labels)


def _enlarge(grid: np.ndarray) -> np.ndarray:
    """Turn one (8, 8) grid of ink counts into (16, 16, 3) uint8 pixels."""
    grey = Image.fromarray((grid * 255 / INK_LEVELS).round().astype(np.uint8))
    return np.asarray(grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB"))
