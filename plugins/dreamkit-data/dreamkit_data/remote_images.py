"""Images in a folder of a bucket, by the names in records and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dreamkit import DocumentError, DreamkitError, Url, count, decode_picture, describe_value, printable
from dreamkit_data.bucket_reads import read_whole

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_IMAGE: Final = 2**28  # bytes of an object
LONGEST_NAME: Final = 1024  # bytes, in S3


def parent(url: Url) -> Url:
    """Return the URL of the folder of an object, with its last `/`."""
    return Url(url.rpartition("/")[0] + "/")


def read_image(folder: Url, name: str, where: str) -> bytes | None:
    """Return the bytes of an image in a folder of a bucket, with one request; None if there is no such object.

    Raises:
        DocumentError: the name leads out of the folder, or the object is too large.
        StorageError: the network or the service fails.
    """
    if problem := _name_problem(name):
        raise DocumentError(f"{where}: expected a path inside {printable(folder)}, got {problem}")
    try:
        url = Url(f"{folder.rstrip('/')}/{name}")
    except DreamkitError as error:
        raise DocumentError(f"{where}: {describe_value(name)}: {error}") from error
    data = read_whole(url, MOST_IMAGE)
    if data is not None and len(data) > MOST_IMAGE:
        raise DocumentError(f"{where}: {printable(url)}: expected at most {MOST_IMAGE:,} bytes, got more")
    return data


def remote_picture(folder: Url, name: str, where: str) -> Picture:
    """Return an image in a folder of a bucket.

    Raises:
        DocumentError: the name leads out of the folder, there is no such object, or it is not an image.
        StorageError: the network or the service fails.
    """
    data = read_image(folder, name, where)
    if data is None:
        raise DocumentError(f"{where}: {printable(folder)}: no such object: {describe_value(name)}")
    return decode_picture(data, where)


def _name_problem(name: str) -> str | None:
    """Return a name in a folder as a message shows it if it leads out of the folder or no object has it, or None."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return f"'{printable(name)}', which is not Unicode"
    if size > LONGEST_NAME:
        return f"a name of {count(f'{size:,}', 'byte')}"
    if not name or name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        return describe_value(name)
    return None
