"""The judge: a classifier of the digit in a picture, which measures drawings.

It is trained at run time, in under a second, on the real training digits alone. It shares nothing with the vision
encoder or the image decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from PIL import Image
from sklearn.svm import SVC

from dreamkit_digits import digits

Pictures = Sequence[Image.Image] | np.ndarray
"""N pictures: PIL images of any size, or one (N, H, W, 3) uint8 array."""

GRID_SIZE = 8
"""Pictures are judged on the 8 x 8 grid that the handwriting was recorded on."""


class Judge:
    """A support-vector classifier of digit pictures; deterministic."""

    def __init__(self, classifier: SVC) -> None:
        self._classifier = classifier

    @classmethod
    def train(cls) -> Self:
        """Return a judge trained on the 1,400 training digits."""
        # C and gamma are the usual ones for these digits on their scale of 0 to 16.
        classifier = SVC(C=10.0, gamma=0.001)
        train = digits.load("train")
        classifier.fit(grey_levels(train.pixels), train.labels)
        return cls(classifier)

    def judge(self, images: Pictures) -> np.ndarray:
        """Return the digit seen in each of N pictures, (N,) int64."""
        if len(images) == 0:
            return np.empty(0, dtype=np.int64)
        return self._classifier.predict(grey_levels(images))

    def accuracy(self, images: Pictures, labels: Sequence[int] | np.ndarray) -> float:
        """Return the share of pictures, 0 to 1, in which the judge sees the digit of `labels`."""
        return float(np.mean(self.judge(images) == np.asarray(labels)))


def grey_levels(images: Pictures) -> np.ndarray:
    """Return (N, 64) grey levels from 0 to 16, averaged over the cells of an 8 x 8 grid."""
    pictures = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
    side = (GRID_SIZE, GRID_SIZE)
    cells = [picture.convert("L").resize(side, Image.Resampling.BOX) for picture in pictures]
    grey = np.stack([np.asarray(cell, dtype=np.float64) for cell in cells])
    return grey.reshape(len(cells), -1) * digits.INK_LEVELS / 255
