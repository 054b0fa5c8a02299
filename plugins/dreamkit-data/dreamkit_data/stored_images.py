"""Images as tables store them: bytes, base64, paths, and the structs of bytes and path of `datasets`."""

from __future__ import annotations

import binascii
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamkit import (
    DocumentError,
    ImagePaths,
    Location,
    StorageError,
    decode_picture,
    describe_value,
    printable,
    read_error,
)
from dreamkit_data.buckets import is_remote, parent
from dreamkit_data.remote_images import remote_picture

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_FILES: Final = 1000  # of tables, whose folders are kept
_ADDRESS: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_STANDARD: Final = str.maketrans(
    "-_", "+/", " \t\r\n"
)  # from the alphabet for addresses; without line breaks


def stored_value(value: Any) -> Any:
    """Return the bytes or the path of an image; None, if a table has neither.

    The feature Image of `datasets` is a struct of `bytes` and `path`, where the path is the name of the bytes or else
    that of a file.
    """
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    return None if isinstance(value, str) and not value.strip() else value


def is_address(value: Any) -> bool:
    """Return True if a value is an address of the web."""
    return isinstance(value, str) and _ADDRESS.match(value) is not None


def stored_picture(
    value: Any, where: str, table: Location, images: Location | None, *, base64: bool = False
) -> Picture:
    """Return the image of a value that `stored_value` returned.

    Args:
        value: the value.
        where: file, row and column, for messages.
        table: file or object with the value; paths are relative to its folder.
        images: folder of the images, which no path may leave; None: paths are relative to the table's folder. No path
            may leave a folder of a bucket.
        base64: a text is the image in base64, of either alphabet, and no path.

    Raises:
        DocumentError: no image, a damaged one, an address of the web, or a path that leads to no image.
        StorageError: the disk or network fails.
    """
    if isinstance(value, bytes):
        return decode_picture(value, where)
    if not isinstance(value, str):
        raise DocumentError(f"{where}: expected an image, got {describe_value(value)}")
    if base64 and not value.startswith("data:"):
        try:
            data = binascii.a2b_base64(value.translate(_STANDARD), strict_mode=True)
        except ValueError as error:
            raise DocumentError(
                f"{where}: expected an image in base64, got {describe_value(value)}: {error}"
            ) from error
        return decode_picture(data, where)
    if is_address(value):
        raise DocumentError(
            f"{where}: expected an image or a path, got the address {describe_value(value)}; download the images"
        )
    folder = parent(table) if images is None and is_remote(table) else images
    if folder is not None and is_remote(folder) and not value.startswith("data:"):
        return remote_picture(folder, value, where)
    paths = image_paths(table, images)
    if problem := paths.problem(value):
        raise DocumentError(f"{where}: {problem}")
    return paths.open(value, where)


@lru_cache(MOST_FILES)
def image_paths(table: Location, images: Location | None) -> ImagePaths:
    """Return the paths of images of a table. Those in buckets are not paths: then only data URLs are.

    Raises:
        DocumentError: `images` is not a folder.
    """
    return ImagePaths(
        Path() if is_remote(table) else Path(table),
        None if images is None or is_remote(images) else Path(images),
    )


def image_mode(path: str, *, follow_link: bool) -> int | None:
    """Return the mode of the file of an image, or of a link itself; None if there is no such file.

    Raises:
        StorageError: the disk or network fails: an image that cannot be reached is not missing.
    """
    try:
        return (os.stat if follow_link else os.lstat)(path).st_mode
    except ValueError:  # a name that no file can have
        return None
    except OSError as error:
        failure = read_error(f"{printable(path)}: cannot reach the image: {error.strerror}", error)
        if isinstance(failure, StorageError):
            raise failure from error
        return None
