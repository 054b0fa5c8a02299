"""URLs of objects in buckets. They stand where paths of files do, and plug-ins read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, TypeAlias

from dreamkit.errors import DreamkitError

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# A user, a password or both before the host. In abfs://CONTAINER@ACCOUNT, the container is none.
_USER: Final = re.compile(r"(?!abfss?:)[^:]*://[^/?#]*@|[^:]*://[^/?#@]*:[^/?#]*@", re.IGNORECASE)
_QUERY: Final = re.compile(r"\?[^/?]*=|#")


class Url(str):
    """The URL of an object, such as `s3://bucket/00000.tar`, of several by a pattern, or of a folder by a last `/`.

    A `Path` would lose one of its slashes. A field of a recipe section takes URLs if its type is `Path | Url`.

    Attributes:
        scheme: the part before `://`, in lower case.
        written: the text of a recipe, if it has environment variables.

    Raises:
        DreamkitError: not a URL, or one that may have credentials: checkpoints, indexes and messages would show them.
    """

    scheme: str
    written: str | None = None

    def __new__(cls, text: str) -> Url:
        match = _URL.match(text)
        if match is None:
            raise DreamkitError("expected a URL, which has '://' after its scheme")
        if problem := url_problem(text):
            raise DreamkitError(problem)
        url = super().__new__(cls, text)
        url.scheme = match[1].lower()
        return url

    @property
    def name(self) -> str:
        """The last part of the URL, as that of a `Path`."""
        return self.rstrip("/").rpartition("/")[2]


Location: TypeAlias = Path | Url


def is_url(text: object) -> bool:
    """Return True if a text begins as a URL does: a scheme, then `://`."""
    return isinstance(text, str) and _URL.match(text) is not None


def url_problem(text: object) -> str | None:
    """Return why a text that is a URL cannot be one of a recipe, or None. The message has no part of the URL."""
    if not isinstance(text, str) or not is_url(text):
        return None
    if _USER.match(text):
        return (
            "expected a URL without a user and password, got one with '@'; remove what is before '@', and set "
            "credentials in the environment"
        )
    if _QUERY.search(text):
        return (
            "expected a URL without a query, which may have credentials; remove what is after '?' or '#', and set "
            "credentials in the environment"
        )
    return None


def location(text: str) -> Location:
    """Return a text as a `Url` if it begins as one, else as a `Path`.

    Raises:
        DreamkitError: a URL with a user, a password or a query.
    """
    return Url(text) if is_url(text) else Path(text)
