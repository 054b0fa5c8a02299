"""`to_rgb` shows an image upright, with 16 bits scaled, on white."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

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


def linear_profile(space: bytes) -> bytes:
    """Return an ICC profile (version 2.1) with the primaries of sRGB and values in proportion to light."""

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, 256) + bytes(2)  # gamma 1.0
    name = b"desc" + bytes(4) + struct.pack(">I", 7) + b"linear\0" + bytes(79)
    content = {b"desc": name, b"cprt": b"text" + bytes(4) + b"none\0" + bytes(3)}
    content[b"wtpt"] = xyz(0.9642, 1.0, 0.8249)
    if space == b"GRAY":
        content[b"kTRC"] = curve
    else:  # adapted to D50, as in the profile of the ICC
        content[b"rXYZ"] = xyz(0.4360, 0.2225, 0.0139)
        content[b"gXYZ"] = xyz(0.3851, 0.7169, 0.0971)
        content[b"bXYZ"] = xyz(0.1431, 0.0606, 0.7139)
        content |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, data, start = b"", b"", 128 + 4 + 12 * len(content)
    for tag, value in content.items():
        padded = value + bytes(-len(value) % 4)
        table += tag + struct.pack(">II", start + len(data), len(value))
        data += padded
    size = struct.pack(">I", start + len(data))
    header = size + bytes(4) + b"\x02\x10\0\0" + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(content)) + table + data


def of_srgb(linear: int) -> float:
    """Return the sRGB value of a linear one, both in 0..255 (IEC 61966-2-1)."""
    light = linear / 255
    return 255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("mode", "space"), [("RGB", b"RGB "), ("P", b"RGB "), ("L", b"GRAY"), ("L", b"RGB ")]
)
def test_colours_of_a_profile_become_those_of_srgb(mode: str, space: bytes) -> None:
    for value in (0, 30, 128, 200, 255):
        image = Image.new("L", (2, 2), value).convert(mode)
        image.info["icc_profile"] = linear_profile(space)
        converted = to_rgb(image)
        assert converted.mode == "RGB" and "icc_profile" not in converted.info
        assert converted.getpixel((0, 0)) == pytest.approx([of_srgb(value)] * 3, abs=1)
    photograph = Image.new("RGB", (2, 2), (30, 128, 200))
    photograph.info["icc_profile"] = linear_profile(b"RGB ")
    assert to_rgb(photograph).getpixel((0, 0)) == pytest.approx([*map(of_srgb, (30, 128, 200))], abs=2)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "LA", "RGBA", "1", "I;16"])
def test_a_profile_of_srgb_of_another_space_or_broken_changes_nothing(mode: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new(mode, (3, 2), 1)
    plain = np.asarray(to_rgb(image))
    others = (linear_profile(b"GRAY"),) if mode in ("RGB", "CMYK", "P", "RGBA") else ()
    for profile in (srgb, b"", b"junk", linear_profile(b"RGB ")[:200], linear_profile(b"CMYK"), *others):
        image.info["icc_profile"] = profile
        assert np.array_equal(np.asarray(to_rgb(image)), plain)


def test_broken_exif_data_are_ignored() -> None:
    image = Image.new("RGB", (3, 2), "red")
    for exif in (
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12" + bytes(3),
    ):
        image.info["exif"] = exif
        assert to_rgb(image).size == (3, 2)
