"""Images of data sets, decoded completely; those that cannot be used are refused with the reason."""

from __future__ import annotations

import os
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image as PIL

from dreamkit.data.document_reads import raise_own, read_error
from dreamkit.data.shrinking import choose_size
from dreamkit.data.unchanged import FileStatus, unchanged
from dreamkit.errors import DocumentError, describe_error
from dreamkit.parts.pictures import picture_problem, size_problem
from dreamkit.storage.paths import irregular_kind, shown_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image as Picture

EMPTY: Final = "expected an image, got an empty file"


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
                is_empty = os.stat(path).st_size == 0
                picture, problem = (None, EMPTY) if is_empty else _read(path, _formats())
    except DocumentError as error:
        raise read_error(str(error) if where == name else f"{where}: {error}", error) from error
    except FileNotFoundError as error:
        raise DocumentError(f"{where}: no such image: {name}") from error
    except Exception as error:  # Pillow's readers raise any type of error about a damaged file
        raise_own(error, f"{where}: cannot read the image {name}")
        raise read_error(f"{where}: cannot read the image {name}: {_reason(error)}", error) from error
    if kind is not None:
        raise DocumentError(f"{where}: expected an image in a regular file, got {kind}: {name}")
    if picture is None or problem is not None:
        raise DocumentError(f"{where}: {name}: {problem}")
    return picture


def decode_picture(data: bytes, where: str, formats: Sequence[str] | None = None) -> Picture:
    """Return the image in the bytes of a file, decoded completely as a PIL image; of an animation, the first frame.

    `formats` are those of Pillow to accept; None accepts all that `open_picture` reads. In a training with
    `train.decode_margin`, a large JPEG is decoded smaller.

    Raises:
        DocumentError: no or damaged content, or `picture_problem` refuses it. The message starts with `where`, the
            place of the bytes.
    """
    if not data:
        raise DocumentError(f"{where}: {EMPTY}")
    try:
        picture, problem = _read(BytesIO(data), formats or _formats())
    except Exception as error:  # Pillow's readers raise any type of error about a damaged file
        raise_own(error, f"{where}: cannot read the image")
        raise DocumentError(f"{where}: cannot read the image: {_reason(error)}") from error
    if problem is not None:
        raise DocumentError(f"{where}: {problem}")
    return picture


def _read(source: Path | BytesIO, formats: Sequence[str]) -> tuple[Picture, str | None]:
    """Return an image, and why it cannot be used or None. It is decoded only if its size is no problem."""
    with PIL.open(source, formats=tuple(formats)) as picture:
        problem = size_problem(*picture.size)  # before any memory is taken
        if problem is None:
            choose_size(picture)
            picture.load()
            problem = picture_problem(picture)
    return picture.convert("I;16") if picture.mode == "I" and problem is None else picture, problem


@cache
def _formats() -> tuple[str, ...]:
    """Return Pillow's formats but EPS, a language whose programs Pillow runs in Ghostscript."""
    PIL.init()
    return tuple(name for name in PIL.ID if name != "EPS")


def _reason(error: Exception) -> str:
    """Return why an image cannot be read, without the address of the opened file in memory."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "expected an image of a format that Pillow reads, got another file or a damaged start"
    return (error.strerror if isinstance(error, OSError) else None) or describe_error(error)
