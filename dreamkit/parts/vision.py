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
    """Pictures to vision tokens."""

    spec: VisionSpec

    @abstractmethod
    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        """Any pictures, of any size and mode -> pixels (N, 3, image_size, image_size)."""

    @abstractmethod
    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) -> features (N, V, dim)."""

    def library_forward(self, pixels_NCHW: Tensor) -> Tensor | None:
        """The features as the library behind the part computes them by itself; None: no library is behind it."""
        return None
