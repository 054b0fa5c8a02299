"""Errors of the libraries that read buckets, with what a user can set. None of them shows credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dreamkit import (
    DocumentError,
    DreamkitError,
    StorageError,
    Url,
    describe_error,
    did_you_mean,
    printable,
    read_error,
)

EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}  # of this package, by scheme
# What a user can set, by extra.
ACCESS: Final = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket set "
    "FSSPEC_S3_ANON=true; for another service than AWS set AWS_ENDPOINT_URL",
    "gcs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket set "
    "FSSPEC_GCS_TOKEN=anon",
    "hf": "run hf auth login, or set HF_TOKEN",
}
# Types of errors about credentials, of botocore, google-auth and huggingface_hub. Their packages may not be installed.
_CREDENTIALS: Final = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "InvalidConfigError",
    "NoAuthTokenError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
    "RefreshError",
    "GatedRepoError",
    "LocalTokenNotFoundError",
}
_ENDPOINT: Final = (
    "check the network; for another service than AWS set AWS_ENDPOINT_URL to its address, such as "
    "http://localhost:9000"
)
_DENIED: Final = (401, 403)
_SECRETS: Final = (
    (re.compile(r"://(?:[^/\s'\"]*|[^/\s'\"@]*:(?!\d+/)[^\s'\"]*)@"), "://***@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",;]+"), r"\1 ***"),
    (
        re.compile(
            r"(?i)([\w-]*(?:signature|token|secret|password|credential|\bsig\b)[\w-]*(?:=|['\"]\s*:\s*['\"]))[^&\s'\"]+"
        ),
        r"\1***",
    ),
)


@contextmanager
def opening_errors(url: Url) -> Iterator[None]:
    """Raise the errors of a library about an object or its bucket, which are opened at the start.

    Raises:
        DocumentError: they are missing, access is denied, or credentials or a package are missing.
        StorageError: the network or the service fails.
    """
    try:
        yield
    except DreamkitError:
        raise
    except ImportError as error:
        raise DocumentError(f"{printable(url)}: {_package(url, error)}") from error
    except FileNotFoundError as error:
        raise DocumentError(
            f"{printable(url)}: {missing_reason(error)}; correct the path of the data set"
        ) from error
    except Exception as error:
        message = f"{printable(url)}: {_reason(error)}"
        read_error(message, error)  # raises those of this process
        if _is_denied(error):
            raise DocumentError(f"{message}; {_access(url)}") from error
        if "endpoint" in message.lower():
            raise StorageError(f"{message}; {_ENDPOINT}") from error
        if isinstance(error, TypeError | ValueError) or type(error).__name__ == "ParamValidationError":
            raise DocumentError(f"{message}; correct the path of the data set") from error
        raise StorageError(message) from error


@contextmanager
def reading_errors(url: Url) -> Iterator[None]:
    """Raise any error about a read in a run as a `StorageError`: the object could be read before."""
    try:
        yield
    except StorageError:
        raise
    except DocumentError as error:
        raise StorageError(str(error)) from error
    except FileNotFoundError as error:
        raise StorageError(f"{printable(url)}: {missing_reason(error)}; restore it or start anew") from error
    except Exception as error:
        message = f"{printable(url)}: {_reason(error)}"
        read_error(message, error)  # raises those of this process
        raise StorageError(message) from error


def missing_reason(error: FileNotFoundError | None) -> str:
    """Return "no such bucket" or "no such object", as a library's error shows."""
    return f"no such {'bucket' if 'bucket does not exist' in str(error).lower() else 'object'}"


def unknown_scheme(url: Url) -> DocumentError:
    """Return the error about a URL whose scheme fsspec has no file system for."""
    known = (*EXTRAS, "abfs", "az", "hdfs", "https", "sftp")
    return DocumentError(
        f"{printable(url)}: unknown scheme '{printable(url.scheme)}'; {did_you_mean(url.scheme, known)}"
    )


def _package(url: Url, error: ImportError) -> str:
    if url.scheme in EXTRAS:
        return f"a package that reads {url.scheme}:// is missing; pip install 'dreamkit-data[{EXTRAS[url.scheme]}]'"
    return f"{_reason(error)}; install that package"


def _access(url: Url) -> str:
    return ACCESS.get(EXTRAS.get(url.scheme, ""), f"set the credentials of {url.scheme}:// for fsspec")


def _is_denied(error: Exception) -> bool:
    """Return True for missing or refused credentials."""
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in _CREDENTIALS
        or status in _DENIED
        or (isinstance(error, OSError) and str(error).startswith("Forbidden"))  # gcsfs
    )


def _reason(error: Exception) -> str:
    """Return the library's reason without credentials, which addresses of services may have."""
    text = describe_error(error)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
