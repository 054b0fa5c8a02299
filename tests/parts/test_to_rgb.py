"""`to_rgb` shows an image upright, with 16 bits scaled, on white."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dreamkit import DocumentError, to_rgb

ORIENTATION = 0x0112  # the EXIF tag
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_upright(orientation: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    upright = Image.fromarray(values)
    stored = upright.transpose(UNDO[orientation]) if orientation in UNDO else upright
    stored.getexif()[ORIENTATION] = orientation
    assert np.array_equal(np.asarray(to_rgb(stored)), values)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(dtype: type) -> None:
    with pytest.raises(DocumentError, match=r"expected an image of 8 or 16 bits, got .*mode '[FI]'"):
        to_rgb(Image.fromarray(np.ones((2, 2), dtype)))


# All that Pillow has.
MODES = "1 L P RGB RGBA CMYK YCbCr LAB HSV LA PA La RGBX RGBa I;16 I;16B I;16L I;16N I F"


@pytest.mark.parametrize("mode", MODES.split())
def test_each_mode_of_pillow_becomes_rgb_or_is_refused(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    if mode in ("I", "F"):
        with pytest.raises(DocumentError, match=f"mode '{mode}'"):
            to_rgb(image)
    else:
        assert to_rgb(image).mode == "RGB"


def test_transparent_pixels_are_white() -> None:
    clear, half = Image.new("RGBA", (2, 2), (255, 0, 0, 0)), Image.new("RGBA", (2, 2), (0, 0, 0, 127))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    for image, value in ((clear, 255), (half, 128), (palette, 255), (clear.convert("LA"), 255)):
        assert to_rgb(image).getpixel((0, 0)) == (value, value, value)
