"""One conversion of images to RGB, so that the vision encoder and the image decoder see the same image."""

from __future__ import annotations

from PIL import Image, ImageOps
from PIL.Image import Image as Picture

from dreamkit.errors import DocumentError, count

# The values of these modes have no range that the file states: white may be 1, 255 or any other number.
UNBOUNDED = {"F": "float", "I": "32-bit integer"}
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # some versions of Pillow open their 16-bit grey images in mode "I"
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF
WHITE_IS_ZERO = 0


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
    """Return the PIL image in 8-bit RGB, upright (its EXIF orientation applied), transparent pixels laid on white.

    A 16-bit grey image (mode `I;16`) is scaled to 8 bits.

    Raises:
        DocumentError: a float or 32-bit image (modes `F` and `I`): its values have no known range.
    """
    problem = range_problem(picture)
    if problem is not None:
        raise DocumentError(problem)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # `convert` would clip 16-bit grey at 255 instead of scaling
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if picture.mode == "La":  # the only mode that `convert` does not make RGBA of
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
