"""JPEG images decoded at a half, a quarter or an eighth of their size, which costs less than decoding and resizing.

The decoder computes fewer pixels of each block of 8 x 8. Images of other formats stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from dreamkit.errors import TrainingError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.parts.specs import DecoderSpec, VisionSpec
    from dreamkit.recipe.sections import TrainSection

KEY: Final = "train.decode_margin"

# Readers of all kinds decode their images by the same functions, which find the size here: none has to pass it on.
_least_side: ContextVar[int | None] = ContextVar("least_side", default=None)


@contextmanager
def decoding_at_least(side: int | None) -> Iterator[None]:
    """Decode JPEG images smaller in this block, in this thread: both sides have at least `side` pixels.

    Smaller images stay as they are. None decodes all images whole.
    """
    token = _least_side.set(side)
    try:
        yield
    finally:
        _least_side.reset(token)


def choose_size(picture: Picture) -> None:
    """Choose the size to decode an opened image at, which depends on the image and the block around the call alone."""
    side = _least_side.get()
    if side is not None:
        picture.draft(None, (side, side))  # no other format has a draft


def least_side(
    train: TrainSection, vision_encoder: VisionSpec | None, image_decoder: DecoderSpec | None
) -> int | None:
    """Return the least side in pixels of images in training; None if they are decoded whole.

    Raises:
        TrainingError: images are to be smaller, but the parts do not state how large they need them.
    """
    if train.decode_margin is None:
        return None
    sides = []
    for part, spec in (("vision_encoder", vision_encoder), ("image_decoder", image_decoder)):
        if spec is None or spec.resized_side is None:
            raise TrainingError(f"{KEY}: {unknown_side(part)}")
        sides.append(spec.resized_side)
    return math.ceil(train.decode_margin * max(sides))


def unknown_side(part: str) -> str:
    """Return the message about a part whose spec has no `resized_side`."""
    return (
        f"expected model.{part} to resize images to a known size, but it uses their own size or does not state it "
        "(resized_side of its spec); leave out the key"
    )
