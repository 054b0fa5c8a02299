"""Images of data sets, decoded completely; those that cannot be used are refused with the reason."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image as PIL

from dreamkit.data.read_errors import read_error
from dreamkit.data.unchanged import FileStatus, unchanged
from dreamkit.errors import DocumentError, describe_error
from dreamkit.parts.pictures import picture_problem, size_problem
from dreamkit.storage.paths import irregular_kind, shown_path

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def open_picture(path: Path, where: str, before: FileStatus | None = None) -> Picture:
    """Read the image of a file completely, as a PIL image; of an animation, the first frame.

    The message of an error starts with `where`, the place that names the file.

    Raises:
        DocumentError: the file is missing, empty, damaged or not a regular file, or `picture_problem` refuses it.
        StorageError: the disk or network fails. The file changes meanwhile, or changed since its status was `before`.
    """
    name = shown_path(path)
    try:
        with unchanged(path, before):
            kind = irregular_kind(path)
            if kind is None:
                with path.open("rb") as file:
                    picture, problem = _read(file)
    except DocumentError as error:
        raise read_error(str(error) if where == name else f"{where}: {error}", error) from error
    except FileNotFoundError as error:
        raise DocumentError(f"{where}: no such image: {name}") from error
    except Exception as error:  # Pillow's readers raise any type of error about a damaged file
        raise read_error(f"{where}: cannot read the image {name}: {_reason(error)}", error) from error
    if kind is not None:
        raise DocumentError(f"{where}: expected an image in a regular file, got {kind}: {name}")
    if problem is not None:
        raise DocumentError(f"{where}: {name}: {problem}")
    return picture


def decode_picture(data: bytes, where: str) -> Picture:
    """Return the image in the bytes of a file, decoded completely as a PIL image; of an animation, the first frame.

    Raises:
        DocumentError: no or damaged content, or `picture_problem` refuses it. The message starts with `where`, the
            place of the bytes.
    """
    try:
        picture, problem = _read(BytesIO(data))
    except Exception as error:  # Pillow's readers raise any type of error about a damaged file
        raise DocumentError(f"{where}: cannot read the image: {_reason(error)}") from error
    if problem is not None:
        raise DocumentError(f"{where}: {problem}")
    return picture


def _read(file: BinaryIO) -> tuple[Picture, str | None]:
    """Return an image, and why it cannot be used or None. Only one without a problem is decoded."""
    if not file.read(1):
        return PIL.new("L", (1, 1)), "expected an image, got an empty file"
    file.seek(0)
    with PIL.open(file) as picture:
        problem = size_problem(*picture.size)  # before any memory is taken
        if problem is None:
            picture.load()
            problem = picture_problem(picture)
    return picture.convert("I;16") if picture.mode == "I" and problem is None else picture, problem


def _reason(error: Exception) -> str:
    """Return why an image cannot be read, without the address of the opened file in memory."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "expected an image of a format that Pillow reads, got another file or a damaged start"
    return (error.strerror if isinstance(error, OSError) else None) or describe_error(error)
