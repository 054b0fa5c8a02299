"""Images as the pixels that a latent-diffusion model is trained on."""

from __future__ import annotations

import numpy as np
import torch
from PIL.Image import Image as Picture, Resampling
from torch import Tensor

from dreamkit import to_rgb

MAX_ASPECT = 8  # longer sides are cropped to this many times the shorter side before resizing


def square_pixels(picture: Picture, size: int) -> Tensor:
    """Return pixels (3, size, size) in [-1, 1]: the shortest side is resized to `size`, then the centre is cropped.

    Resizing is bilinear. Rounding is that of torchvision's `Resize` and `CenterCrop`, which published models used.
    """
    picture = to_rgb(picture)
    longest = MAX_ASPECT * min(picture.size)
    # a strip of one pixel's height would grow to gigabytes before its crop
    picture = _crop_centre(picture, min(picture.width, longest), min(picture.height, longest))
    picture = picture.resize(_resized(*picture.size, size), Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(_crop_centre(picture, size, size))).permute(2, 0, 1)
    return (pixels.float() / 255 - 0.5) / 0.5


def crop_corner(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the left and top, in the resized image, of the square that `square_pixels` crops."""
    return _corner(*_resized(width, height, size), size, size)


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    return (size, int(size * height / width)) if width <= height else (int(size * width / height), size)


def _crop_centre(picture: Picture, width: int, height: int) -> Picture:
    left, top = _corner(picture.width, picture.height, width, height)
    return picture.crop((left, top, left + width, top + height))


def _corner(outer_width: int, outer_height: int, width: int, height: int) -> tuple[int, int]:
    return round((outer_width - width) / 2), round((outer_height - height) / 2)
