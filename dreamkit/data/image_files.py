"""Images of data sets in files of their own, read completely."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image as PIL

from dreamkit.data.unchanged import FileStatus, unchanged
from dreamkit.errors import DocumentError, describe_error
from dreamkit.parts.pictures import range_problem
from dreamkit.storage.paths import irregular_kind, shown_path

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def open_picture(path: Path, where: str, before: FileStatus | None = None) -> Picture:
    """Read the image of a file completely, as a PIL image.

    Raises:
        DocumentError: the file is missing, is not a regular file or cannot be read, or its values have no known range.
            It changes meanwhile, or changed since its status was `before`. The message starts with `where`, the place
            that names it.
    """
    name = shown_path(path)
    try:
        with unchanged(path, before):
            kind = irregular_kind(path)
            if kind is None:
                with PIL.open(path) as picture:
                    picture.load()
                    problem = range_problem(picture)
    except DocumentError as error:
        raise DocumentError(str(error) if where == name else f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise DocumentError(f"{where}: no such image: {name}") from error
    except Exception as error:  # Pillow's readers raise any type of error about a damaged file
        reason = (error.strerror if isinstance(error, OSError) else None) or describe_error(error)
        raise DocumentError(f"{where}: cannot read the image {name}: {reason}") from error
    if kind is not None:
        raise DocumentError(f"{where}: expected an image in a regular file, got {kind}: {name}")
    if problem is not None:
        raise DocumentError(f"{where}: {name}: {problem}")
    return picture.convert("I;16") if picture.mode == "I" else picture
