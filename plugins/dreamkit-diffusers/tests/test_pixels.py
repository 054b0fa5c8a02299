"""An image of any size and mode becomes a square of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from dreamkit_diffusers.pixels import square_pixels

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"]


def noise_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return image.convert("L").convert(mode) if mode in ("LA", "PA") else image.convert(mode)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 24), mode=st.sampled_from(MODES)
)
def test_any_image_becomes_a_square(width: int, height: int, size: int, mode: str) -> None:
    pixels = square_pixels(noise_image(width, height, mode), size)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == torch.float32
    assert -1 <= pixels.min() <= pixels.max() <= 1


@settings(deadline=None, max_examples=40)
@given(width=st.integers(8, 60), height=st.integers(8, 60), size=st.integers(4, 32))
def test_pixels_are_those_of_torchvision(width: int, height: int, size: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    published = transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    image = noise_image(width, height)
    assert torch.equal(square_pixels(image, size), published(image))


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = noise_image(6, 6)
    restored = ((square_pixels(image, 6) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(restored, np.asarray(image))


def test_a_long_strip_is_cropped_before_resizing() -> None:
    """Otherwise it would be 40 million pixels wide and 512 high."""
    strip = Image.new("RGB", (80_000, 1), "red")
    strip.paste("blue", (39_000, 0, 41_000, 1))
    pixels = square_pixels(strip, 512)
    assert torch.equal(pixels[:, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))


def test_the_centre_remains() -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    for image in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        pixels = square_pixels(image, 10)
        assert (pixels[2] == 1).all()
        assert (pixels[:2] == -1).all()
