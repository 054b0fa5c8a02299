"""One conversion of images to RGB, so that the vision encoder and the image decoder see the same image."""

from __future__ import annotations

from PIL import Image, ImageOps
from PIL.Image import Image as Picture


def to_rgb(picture: Picture) -> Picture:
    """Return the PIL image in 8-bit RGB, upright (its EXIF orientation applied), transparent pixels laid on white.

    A 16-bit grey image is scaled to 8 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # 16-bit grey (32-bit in older Pillow): `convert` would clip it at 255 instead of scaling
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
