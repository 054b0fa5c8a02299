"""Pictures to the pixels a latent-diffusion model trains on."""

from __future__ import annotations

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from dreamkit import to_rgb

LONGEST = 8  # sides: what is longer than this many times the shorter side is cut before it is enlarged


def square_pixels(picture: Image, size: int) -> Tensor:
    """Any picture -> (3, size, size) in [-1, 1]: shortest side resized to `size`, then the centre cut out.

    Bilinear, and rounded as torchvision's `Resize` and `CenterCrop` do, as the published models saw theirs.
    """
    picture = to_rgb(picture)
    shortest = min(picture.size)
    # A strip a pixel high would otherwise grow to gigabytes, only to be cut.
    picture = _centre(
        picture, min(picture.width, LONGEST * shortest), min(picture.height, LONGEST * shortest)
    )
    picture = picture.resize(_resized(*picture.size, size), Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(_centre(picture, size, size))).permute(2, 0, 1)
    return (pixels.float() / 255 - 0.5) / 0.5


def square_corner(width: int, height: int, size: int) -> tuple[int, int]:
    """Of a resized picture, the left and top of what `square_pixels` cuts out of it."""
    return _corner(*_resized(width, height, size), size, size)


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)


def _centre(picture: Image, width: int, height: int) -> Image:
    left, top = _corner(picture.width, picture.height, width, height)
    return picture.crop((left, top, left + width, top + height))


def _corner(outer_width: int, outer_height: int, width: int, height: int) -> tuple[int, int]:
    return round((outer_width - width) / 2), round((outer_height - height) / 2)
