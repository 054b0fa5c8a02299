"""The interface of a vision encoder.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dreamkit.parts.part import PretrainedPart
from dreamkit.parts.specs import VisionSpec

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class VisionEncoder(PretrainedPart):
    """A part that turns images into vision tokens."""

    spec: VisionSpec

    @abstractmethod
    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        """Return the pixels (N, 3, image_size, image_size), float32 on the CPU, of N PIL images of any size and mode.

        `dreamkit.to_rgb` makes an image upright RGB.
        """

    @abstractmethod
    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Compute the features (N, V, dim) of pixels (N, 3, image_size, image_size)."""

    def library_forward(self, pixels_NCHW: Tensor) -> Tensor | None:
        """Compute the features (N, V, dim) with the library behind the part alone; None if there is no library.

        Tests compare them with those of `forward`.
        """
        return None
