"""URLs of objects in buckets. They stand where paths of files do, and plug-ins read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, TypeAlias

from dreamkit.errors import DreamkitError

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ONE_SLASH: Final = re.compile(r"(s3a?|gs|gcs|hf|abfss?|az|https?):/(?!/)", re.IGNORECASE)
# A user, a password or both before the host. In abfs://CONTAINER@ACCOUNT, the container is none. A password may have a
# slash; what follows a colon and has only digits is a port.
_USER: Final = re.compile(r"(?!abfss?:)[^:]*://[^/?#]*@|[^:]*://[^/?#@]*:(?!\d+/)[^?#]*@", re.IGNORECASE)
# The names of objects may have any character, and '?' is a wildcard of patterns. In addresses of the web it is not.
_QUERY: Final = re.compile(r"https?://.*[?#]|.*\?[A-Za-z][\w-]*=", re.IGNORECASE | re.DOTALL)


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
        scheme = match[1].lower()
        url = super().__new__(cls, scheme + text[match.end(1) :])
        url.scheme = scheme
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
    if not isinstance(text, str):
        return None
    if match := _ONE_SLASH.match(text):
        return f"expected a URL with '{match[1]}://', got one with '{match[1]}:/'"
    if not is_url(text):
        return None
    if _USER.match(text):
        return (
            "expected a URL without a user and password, got one with '@'; remove what is before '@', and set "
            "credentials in the environment"
        )
    if _QUERY.match(text):
        return (
            "expected a URL without a query, which may have credentials; remove what is after '?' or '#', and set "
            "credentials in the environment"
        )
    return None


def location(text: str) -> Location:
    """Return a text as a `Url` if it begins as one, else as a `Path`.

    Raises:
        DreamkitError: a URL with a user, a password or a query, or with one slash after its scheme.
    """
    if is_url(text):
        return Url(text)
    if problem := url_problem(text):
        raise DreamkitError(problem)
    return Path(text)
