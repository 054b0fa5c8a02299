"""Errors of reading data: those of one sample, and those of the disk or network that has it."""

from __future__ import annotations

import errno
from typing import Final

from dreamkit.errors import DocumentError, StorageError

# Numbers of the system's errors about a path that leads to no file: it is wrong in the data itself.
ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})


def read_error(message: str, error: BaseException) -> DocumentError:
    """Return an error with `message` about a read that `error` ended.

    It is a `StorageError` if the system or a network failed, as with EIO, ESTALE or a timeout. A library's `OSError`
    about damaged content has no number.
    """
    if isinstance(error, StorageError | ConnectionError | TimeoutError):
        return StorageError(message)
    number = error.errno if isinstance(error, OSError) else None
    return DocumentError(message) if number is None or number in ABSENT else StorageError(message)
