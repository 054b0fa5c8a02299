"""The images of MMC4's JSON Lines: a folder beside the file, on a disk or in a bucket."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamkit import DocumentError, Location, Url, decode_picture, printable
from dreamkit_data.buckets import is_remote, listed, parent
from dreamkit_data.mmc4_files import PACKED
from dreamkit_data.mmc4_records import Selection
from dreamkit_data.remote_images import read_image
from dreamkit_data.stored_images import image_mode, image_paths

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@lru_cache(1000)
def image_folder(file: Location, images: Location | None) -> Location:
    """Return the folder of a file's images: `images`, or else the one that MMC4's script of downloads fills.

    For `NAME.jsonl` and `NAME.jsonl.zip`, that is `NAME_images` or `NAME.jsonl_images` beside it. Else `images` is.

    Raises:
        DocumentError: there is no such folder.
        StorageError: the network or the service of a bucket fails.
    """
    if images is not None:
        if is_remote(images) or os.path.isdir(images):
            return images
        raise DocumentError(f"{printable(images)}: no such folder; correct 'images' of the data set")
    name = file.name
    for suffix in (*PACKED, ".jsonl"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    names = [f"{name}_images", f"{name}.jsonl_images", "images"]
    if is_remote(file):
        for each in names:
            if listed(url := Url(f"{parent(file)}{each}/")):
                return url
    else:
        for each in names:
            if os.path.isdir(folder := Path(file).parent / each):
                return folder
    raise DocumentError(
        f"{printable(file)}: expected a folder of images, got none called {printable(names[0])} or images beside the "
        "file; download the images, or set 'images' of the data set"
    )


def lookup(folder: Location) -> Callable[[str], bool]:
    """Return a function that returns True if a folder has an image of this name. A folder in a bucket is listed.

    Raises:
        DocumentError: the image is a link.
        StorageError: the disk or network fails.
    """
    if is_remote(folder):
        return {url.name for url in listed(Url(folder.rstrip("/") + "/"))}.__contains__
    return partial(_exists, Path(folder))


def read_images(
    folder: Location, record: Mapping[str, Any], selection: Selection, file: Location, where: str
) -> dict[int, Picture]:
    """Return the selected images of a record that are in the folder, by their numbers in `image_info`.

    In a bucket, each is one request.

    Raises:
        DocumentError: an image cannot be decoded.
        StorageError: the disk or network fails.
    """
    names = [info["image_name"] for info in record["image_info"]]
    if not is_remote(folder):
        paths = image_paths(file, folder)
        numbers = selection.numbers(record, lookup(folder))
        return {number: paths.open(names[number], where) for number in numbers}
    content: dict[str, bytes | None] = {}

    def exists(name: str) -> bool:
        if name not in content:
            content[name] = read_image(folder, name, where)
        return content[name] is not None

    pictures = {}
    for number in selection.numbers(record, exists):
        data = content[names[number]]
        assert data is not None, "it exists"
        pictures[number] = decode_picture(data, f"{where}: {printable(names[number])}")
    return pictures


def _exists(folder: Path, name: str) -> bool:
    """Return True if a folder has a regular file of this name.

    Raises:
        DocumentError: it is a link.
        StorageError: the disk or network fails.
    """
    path = os.path.join(folder, name)
    mode = image_mode(path, follow_link=False)
    if mode is None:
        return False
    if stat.S_ISLNK(mode):
        raise DocumentError(f"{printable(path)}: expected an image, got a link; copy the image")
    return stat.S_ISREG(mode)
