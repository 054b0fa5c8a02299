"""Images inside records, as data URLs (RFC 2397) in base64: bounded in size, and of formats of the web."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image as PIL

from dreamkit.data.image_files import decode_picture, open_picture
from dreamkit.errors import DocumentError, excerpt
from dreamkit.parts.pictures import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_CHARACTERS: Final = 2**26  # of a data URL: a file of 48 MiB
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of Pillow
_HEAD: Final = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


def is_data_url(path: str) -> bool:
    """Return True if the path of a record is a data URL. A file of such a name is written as `./data:...`."""
    return path[:5].lower() == "data:"


def data_url_problem(url: str) -> str | None:
    """Return why a data URL cannot hold an image, or None. Its image is not decoded."""
    if not _HEAD.match(url):
        return f"expected a data URL such as data:image/png;base64,..., got '{excerpt(url, 40)}'"
    if len(url) > MOST_CHARACTERS:
        return (
            f"expected a data URL of at most {MOST_CHARACTERS:,} characters, got {len(url):,}; write the image to a "
            "file and name its path"
        )
    return None


def open_data_url(url: str, where: str) -> Picture:
    """Decode the image of a data URL completely, as a PIL image. `data_url_problem` has checked its form.

    Raises:
        DocumentError: no base64, no image of a known format, a damaged one, or one that `picture_problem` refuses. The
            message starts with `where`.
    """
    try:
        data = base64.b64decode(url[url.index(",") + 1 :], validate=True)
    except ValueError as error:  # a character beyond ASCII, or no base64
        raise DocumentError(f"{where}: expected base64 in the data URL of an image: {error}") from error
    return decode_picture(data, f"{where}: data URL", FORMATS)


def picture_source(picture: Picture) -> str:
    """Return the absolute path of the file that holds exactly this image, else a data URL with a PNG of it.

    Pillow's attribute `filename` names the file. A PNG keeps the pixels of most modes. An image of another mode, such
    as CMYK, or with a rotation that only its metadata have, is stored as the RGB image that parts make of it.
    """
    return _file_of(picture) or png_url(picture)


def png_url(picture: Picture) -> str:
    """Return a data URL with a PNG of an image."""
    file = io.BytesIO()
    try:
        picture.save(file, "PNG")
        with PIL.open(file) as copy:
            copy.load()
        is_kept = _content(copy) == _content(picture)
    except (OSError, ValueError):  # a PNG has no such mode
        is_kept = False
    if not is_kept:
        file = io.BytesIO()
        to_rgb(picture).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _file_of(picture: Picture) -> str | None:
    """Return the absolute path of the file that an image was read from, if it still has the same content."""
    name = getattr(picture, "filename", None)
    if not name or not isinstance(name, str | os.PathLike):
        return None
    path = os.path.abspath(os.fsdecode(name))
    try:
        is_same = _content(open_picture(Path(path), path)) == _content(picture)
    except DocumentError:
        return None
    return path if is_same else None


def _content(picture: Picture) -> tuple[Any, ...]:
    """Return the values of an image, and those that parts see: both depend on more than the pixels."""
    mode = picture.mode
    return mode, picture.size, picture.getpalette(), picture.tobytes(), to_rgb(picture).tobytes()
