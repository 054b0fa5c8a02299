"""Any picture becomes a square of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from dreamkit import to_rgb
from dreamkit_diffusers.pixels import square_pixels
from dreamkit_diffusers.stable_diffusion import StableDiffusion

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
ORIENTATION = 0x0112  # the EXIF tag


def noise_picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return picture.convert("L").convert(mode) if mode in ("I", "F", "LA", "PA") else picture.convert(mode)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 24), mode=st.sampled_from(MODES)
)
def test_any_picture_becomes_a_square(width: int, height: int, size: int, mode: str) -> None:
    pixels = square_pixels(noise_picture(width, height, mode), size)
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
    picture = noise_picture(width, height)
    assert torch.equal(square_pixels(picture, size), published(picture))


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    picture = noise_picture(6, 6)
    restored = ((square_pixels(picture, 6) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(restored, np.asarray(picture))


def test_a_long_strip_stays_small() -> None:
    """Resized first, it would be 40 million pixels wide and 512 high."""
    strip = Image.new("RGB", (80_000, 1), "red")
    strip.paste("blue", (39_000, 0, 41_000, 1))
    pixels = square_pixels(strip, 512)
    assert torch.equal(pixels[:, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))


def test_the_centre_is_kept() -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    for picture in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        pixels = square_pixels(picture, 10)
        assert (pixels[2] == 1).all()
        assert (pixels[:2] == -1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_put_upright(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = noise_picture(9, 5)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    stored.getexif()[ORIENTATION] = orientation
    assert np.array_equal(np.asarray(to_rgb(stored)), np.asarray(upright))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    for picture in (Image.fromarray(grey), Image.fromarray(grey.astype(np.int32))):
        assert np.asarray(to_rgb(picture))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_what_is_transparent_is_white() -> None:
    clear, half = Image.new("RGBA", (2, 2), (255, 0, 0, 0)), Image.new("RGBA", (2, 2), (0, 0, 0, 127))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    for picture, value in ((clear, 255), (half, 128), (palette, 255), (clear.convert("LA"), 255)):
        assert to_rgb(picture).getpixel((0, 0)) == (value, value, value)
        assert square_pixels(picture, 2)[0, 0, 0].item() == pytest.approx(value / 127.5 - 1, abs=1e-6)


def test_preprocess_stacks_pictures_of_every_kind(decoder: StableDiffusion) -> None:
    pictures = [noise_picture(3 + n, 20 - n, mode) for n, mode in enumerate(MODES)]
    targets, extras = decoder.preprocess(pictures)
    assert targets.shape == (len(MODES), 3, 16, 16)
    assert extras == {}
    for row, picture in zip(targets, pictures, strict=True):
        assert torch.equal(row, square_pixels(picture, 16))
