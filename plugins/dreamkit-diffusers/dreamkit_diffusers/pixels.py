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
    width, height = picture.size
    resized = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    picture = _centre(picture.resize(resized, Resampling.BILINEAR), size, size)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return (pixels.float() / 255 - 0.5) / 0.5


def _centre(picture: Image, width: int, height: int) -> Image:
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))
