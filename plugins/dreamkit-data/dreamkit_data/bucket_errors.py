"""Errors of the libraries that read buckets, with what a user can set; none of them shows credentials."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from dreamkit import DocumentError, DreamkitError, StorageError, Url, describe_error, did_you_mean, printable

EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}  # of this package, by scheme
_SECRETS: Final = (
    (re.compile(r"://[^/\s'\"]*@"), "://***@"),
    (
        re.compile(
            r"(?i)((?:signature|token|secret|password|credential|accesskeyid|sig)[\w-]*[=:]\s*)[^&\s'\"]+"
        ),
        r"\1***",
    ),
)


@contextmanager
def opening_errors(url: Url) -> Iterator[None]:
    """Raise the errors of a library about an object or bucket, which is opened at the start.

    Raises:
        DocumentError: the bucket is missing, access is denied, or credentials or a package are missing.
        StorageError: the network or the service fails.
    """
    try:
        yield
    except (DreamkitError, MemoryError):
        raise
    except Exception as error:
        raise StorageError(f"{printable(url)}: {_reason(error)}") from error


@contextmanager
def reading_errors(url: Url) -> Iterator[None]:
    """Raise any error of a library about a read in a run as a `StorageError`: the object could be read before."""
    try:
        yield
    except (StorageError, MemoryError):
        raise
    except Exception as error:
        raise StorageError(f"{printable(url)}: {_reason(error)}") from error


def unknown_scheme(url: Url, schemes: Iterable[str]) -> DocumentError:
    """Return the error about a URL whose scheme fsspec has no file system for."""
    return DocumentError(
        f"{printable(url)}: unknown scheme '{printable(url.scheme)}'; {did_you_mean(url.scheme, schemes)}"
    )


def _reason(error: Exception) -> str:
    text = error_text = describe_error(error)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text if text else error_text
