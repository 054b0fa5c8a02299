"""Files that are written whole, and errors of the operating system while writing. This module loads no torch."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dreamkit.errors import OutputError
from dreamkit.storage.paths import shown_path

STAGING: Final = ".dreamkit.partial"  # in a folder: files that a command moves into the folder at its end
# A file or folder until a rename completes it. Files that several processes write at once have a number, too.
_PARTIAL: Final = re.compile(r"^\.(.+?)(?:\.[0-9a-f]{32})?\.partial$")

_TORCH: Final = re.compile(r"inline_container|PytorchStreamWriter|iostream error")
_REMEDIES: Final = {
    None: "free some space, or raise the limits on disk use and on the size of a file (ulimit -f)",
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space of your quota or write to another disk",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "make it writable or name another folder",
    errno.EACCES: "make it writable or name another folder",
    errno.EPERM: "make it writable or name another folder",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an `OutputError` that names `path` and the free space if a write in the block fails.

    Without another cause, the block must only write: each error of the operating system counts as a failed write.

    Raises:
        OutputError: the disk is full or read-only, a quota or limit is exceeded, or the path is impossible.
    """
    outer = sys.exception()
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        if (reason := system_error(error, outer)) is None:
            raise
        name = reason.filename2 or reason.filename  # of a copy and a rename, the second is the target
        if isinstance(name, (str, os.PathLike)):
            path = Path(name)
        raise OutputError(failed_write(shown_path(final_path(path)), reason, path)) from error


def failed_write(
    name: str, error: OSError, place: str | Path | None, *, remedy: str = "name another folder"
) -> str:
    """Return the message about a write to `name` that failed, with the free space at `place`.

    `remedy` is the end of the message, unless there is a better one for the error.
    """
    limits = "" if place is None else f" ({', '.join(_limits(error, Path(place)))})"
    return f"cannot write {name}: {error.strerror or error}{limits}; {_REMEDIES.get(error.errno, remedy)}"


def require_space(path: Path, size: int) -> None:
    """Check that the disk of `path` has `size` free bytes, before anything is written.

    Raises:
        OutputError: it has fewer.
    """
    from rich.filesize import decimal

    for folder in (path, *path.absolute().parents):
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            continue
        if free < size:
            raise OutputError(
                f"cannot write {shown_path(final_path(path))}: expected {decimal(size)} of free space, got "
                f"{decimal(free)}; {_REMEDIES[errno.ENOSPC]}"
            ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file. It appears, or replaces an older one, only when complete.

    Raises:
        OutputError: the file cannot be written. Then an older one stays as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def append_text(path: Path, text: str) -> None:
    """Append a text to a file: all of it or, after an error, nothing.

    Raises:
        OutputError: the file cannot be written.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        size = file.tell()
        data = memoryview(text.encode())
        try:
            while data:  # a nearly full disk takes a part of it first
                data = data[file.write(data) :]
        except BaseException:
            file.truncate(size)
            raise


def final_path(path: Path) -> Path:
    """Return the path that a file in an unfinished folder has at the end."""
    whole = str(path).replace(f"/{STAGING}/new", "")
    return Path(*(_PARTIAL.sub(r"\1", part) for part in Path(whole).parts))


def system_error(error: BaseException, outer: BaseException | None) -> OSError | None:
    """Return the error of the operating system that caused `error`, if one did; `outer` was handled before the block.

    Libraries in Rust write its number into their message. torch raises a RuntimeError, without the reason if torch
    opened the file itself.
    """
    cause: BaseException | None = error
    unknown: OSError | None = None
    while cause is not None and cause is not outer:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        if number := re.search(r"\(os error (\d+)\)", str(cause)):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        if _TORCH.search(str(cause)):
            unknown = OSError("the system did not take all bytes")
        cause = cause.__cause__ or cause.__context__
    return unknown


def _limits(error: OSError, place: Path) -> Iterator[str]:
    """Yield the free space at `place` and, if a file was too large, the limit on its size."""
    from rich.filesize import decimal

    if error.errno == errno.EFBIG:
        yield f"at most {decimal(resource.getrlimit(resource.RLIMIT_FSIZE)[0])} in a file"
    for folder in (place, *place.absolute().parents):
        try:
            yield f"{decimal(shutil.disk_usage(folder).free)} free"
            return
        except OSError:
            pass
