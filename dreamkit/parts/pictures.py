"""One conversion of images to RGB, so that the vision encoder and the image decoder see the same image."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from typing import Final

from PIL import Image, ImageCms, ImageOps
from PIL.Image import Image as Picture

from dreamkit.errors import DocumentError, count

# The values of these modes have no range that the file states: white may be 1, 255 or any other number.
UNBOUNDED = {"F": "float", "I": "32-bit integer"}
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # some versions of Pillow open their 16-bit grey images in mode "I"
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF
WHITE_IS_ZERO = 0
MAX_PIXELS: Final = 89_478_485  # where Pillow warns of a decompression bomb: 256 MiB of RGB
# Parts scale the shorter side to their image size, so that the longer one takes memory in proportion.
MAX_RATIO: Final = 100
COLOUR_SPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of ICC profiles, by the mode of an image


def picture_problem(picture: Picture) -> str | None:
    """Return why an opened image cannot be used, or None: its size or the range of its values."""
    return size_problem(*picture.size) or range_problem(picture)


def size_problem(width: int, height: int) -> str | None:
    """Return why an image of `width` and `height` pixels takes too much memory, or None."""
    shape = f"{width} x {height}"
    if width * height > MAX_PIXELS:
        return f"expected an image of at most {MAX_PIXELS:,} pixels, got {shape}; scale it down"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"expected an image whose longer side is at most {MAX_RATIO} times the shorter, got {shape}; crop it"
    return None


def range_problem(picture: Picture) -> str | None:
    """Return why the values of an opened image have no known range, or None.

    An image of mode `I` without a problem is 16-bit grey.
    """
    kind = UNBOUNDED.get(picture.mode)
    if kind is not None and not (picture.mode == "I" and picture.format in SIXTEEN_BIT_FORMATS):
        return (
            f"expected an image of 8 or 16 bits, got {kind} values (mode '{picture.mode}') without a known range; "
            "scale them to 0..255 or 0..65535 and convert the image"
        )
    if picture.mode.startswith("I;16"):
        tags = getattr(picture, "tag_v2", {})  # Pillow scales or inverts these images of TIFF files in no way
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        if bits != 16:
            return (
                f"expected grey values of 8 or 16 bits, got {count(bits, 'bit')}; scale and convert the image"
            )
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            return "expected 16-bit grey values with black as 0, got white as 0; invert the image"
    return None


def to_rgb(picture: Picture) -> Picture:
    """Return the PIL image in 8-bit sRGB, upright (its EXIF orientation applied), transparent pixels laid on white.

    A 16-bit grey image (mode `I;16`) is scaled to 8 bits. The values are converted from the colours of its ICC profile.
    Broken EXIF data, and a broken profile or one of another colour space, are ignored.

    Raises:
        DocumentError: a float or 32-bit image (modes `F` and `I`): its values have no known range.
    """
    problem = range_problem(picture)
    if problem is not None:
        raise DocumentError(problem)
    profile = picture.info.get("icc_profile")
    with suppress(Exception):  # Pillow's reader of EXIF raises any type of error
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # `convert` would clip 16-bit grey at 255 instead of scaling
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if picture.mode == "La":  # the only mode that `convert` does not make RGBA of
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    rgb = (_to_srgb(picture, profile) if profile else None) or picture.convert("RGB")
    rgb.info.pop("icc_profile", None)
    return rgb


def _to_srgb(picture: Picture, profile: bytes) -> Picture | None:
    """Return an image without transparency in RGB, converted from the colours of `profile`; None without a change."""
    if picture.mode not in ("L", "CMYK"):
        picture = picture.convert("RGB")
    transform = _transform(profile, picture.mode)
    if transform is None and picture.mode == "L":  # grey values in an RGB profile
        picture = picture.convert("RGB")
        transform = _transform(profile, picture.mode)
    return None if transform is None else ImageCms.applyTransform(picture, transform)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from `profile` to sRGB; None if the profile is sRGB, broken or not of this mode."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        is_srgb = "srgb" in ImageCms.getProfileDescription(source).lower()
        if is_srgb or source.profile.xcolor_space.strip() != COLOUR_SPACES[mode]:
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
