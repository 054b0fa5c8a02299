"""Any picture to RGB, in one way: what a part reads looks the same to the part that learns to draw it."""

from __future__ import annotations

from PIL import Image, ImageOps
from PIL.Image import Image as Picture


def to_rgb(picture: Picture) -> Picture:
    """The picture upright (its EXIF orientation applied), in 8-bit RGB, what is transparent laid on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # 16 bits of grey (32 in older Pillow), which `convert` would clip at 255 instead of scaling
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
