"""Reading of documents: errors of one sample, and those of the disk or network that has it, which may pass."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dreamkit.data.shrinking import decoding_at_least
from dreamkit.document import Document
from dreamkit.errors import DocumentError, StorageError, TrainingError, describe_error, printable
from dreamkit.interrupts import pending
from dreamkit.parts.pictures import picture_problem

# Numbers of the system's errors about a path that leads to no file: it is wrong in the data itself.
ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})
DELAYS: Final = (1, 2, 4, 8)  # seconds between reads that a disk or network fails


def raise_own(error: BaseException, message: str = "") -> None:
    """Raise an error that is of this process, not of the data: too little memory, or too many open files.

    `message` becomes its first note: it names what was read, because a damaged file may be the cause.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.EMFILE):
        if message and not getattr(error, "__notes__", None):
            error.add_note(message)
        raise error


@contextmanager
def opening_errors(path: Path) -> Iterator[None]:
    """Raise the system's errors about the file of a data set, which is opened at the start, with a remedy.

    Raises:
        DocumentError: the file is missing or cannot be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DocumentError(
            f"{printable(path)}: no such file or folder; correct the path of the data set"
        ) from error
    except OSError as error:
        raise DocumentError(f"{printable(path)}: cannot read the file: {error.strerror}") from error


def read_error(message: str, error: BaseException) -> DocumentError:
    """Return an error with `message` about a read that `error` ended.

    It is a `StorageError` if the system or a network failed, as with EIO, ESTALE or a timeout. A library's `OSError`
    about damaged content has no number.

    Raises:
        MemoryError, OSError: `error` itself, if this process has too little memory or too many open files. Neither is
            an error of the data: the document is not skipped, and reading it again does not help. Its note is
            `message`.
    """
    raise_own(error, message)
    if isinstance(error, StorageError | ConnectionError | TimeoutError):
        return StorageError(message)
    number = error.errno if isinstance(error, OSError) else None
    return DocumentError(message) if number is None or number in ABSENT else StorageError(message)


def read_document(read: Callable[[], Document], where: str, *, least_side: int | None = None) -> Document:
    """Return the result of `read`, with images that can be used. While a disk or network fails, call it again.

    An `OSError` of `read` becomes an error of dreamkit, with `where` in its message: the place of the document.
    `least_side` is that of `decoding_at_least`.

    Raises:
        DocumentError: the document cannot be read, or one of its images cannot be used.
        StorageError: the disk or network still fails.
        TrainingError: this process has too little memory to read the document.
    """
    for delay in DELAYS:
        try:
            return _read_once(read, where, least_side)
        except StorageError:
            if pending() is not None:  # a signal that ends the run
                raise
        time.sleep(delay)
    return _read_once(read, where, least_side)


def _read_once(read: Callable[[], Document], where: str, least_side: int | None) -> Document:
    try:
        with decoding_at_least(least_side):
            document = read()
        for image in document.images:
            if problem := picture_problem(image.picture):
                raise DocumentError(f"{document.name}: {problem}")
    except OSError as error:
        raise read_error(f"{where}: {describe_error(error)}", error) from error
    except MemoryError as error:  # it is named: reading it again may end each run
        place = next(iter(getattr(error, "__notes__", ())), f"{where}: cannot read it")
        raise TrainingError(
            f"{place}: too little memory; free some or lower train.workers; if this document ends every run, remove it"
        ) from error
    return document
