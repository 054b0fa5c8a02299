"""Paths that remember the environment variables in them, so that files hold the names and not the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamkit.errors import DreamkitError, describe_value, excerpt
from dreamkit.recipe.interpolations import escape, has_variable
from dreamkit.storage.paths import shown_path
from dreamkit.storage.urls import Location, Url, is_url


class WrittenText(str):
    """A path with the values of environment variables; `written` has their names, as in `${oc.env:DATA}/a.jsonl`."""

    written: str

    def __new__(cls, text: str, written: str) -> WrittenText:
        """Create a text that files hold as `written`."""
        instance = super().__new__(cls, text)
        instance.written = written
        return instance

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Return the class and arguments that a copy in another process is created with."""
        return type(self), (str(self), self.written)


class WrittenPath(type(Path())):  # type: ignore[misc]
    """A `Path` as `WrittenText`. Paths that are derived from it have no variables."""

    written: str | None = None


def as_path(cls: Any, text: str) -> str | Path:
    """Return a path as a `str`, `Path` or `Url`, as `cls` is; one with environment variables remembers them.

    Raises:
        DreamkitError: a URL where `cls` takes none, a path where it takes only URLs, or a URL with credentials.
    """
    if is_url(text) and cls in (Url, Location):
        url = Url(text)
        url.written = getattr(text, "written", None)
        return url
    if is_url(text):
        raise DreamkitError("expected a path of this machine, got a URL, which this key does not take")
    if cls is Url:
        raise DreamkitError(f"expected a URL, got {describe_value(text)}")
    if cls is str:
        return text
    if not isinstance(text, WrittenText):
        return Path(text)
    path = WrittenPath(text)
    path.written = text.written
    return path


def as_written(value: str | Path) -> str:
    """Return a text or path as files hold it: a folder that is called `${oc.env:NAME}` is no variable."""
    text = str(value)
    return getattr(value, "written", None) or (escape(text) if has_variable(text) else text)


def shown_setting(value: object) -> str:
    """Return a value of a stored recipe for a message. Paths in it are absolute, and they are never shortened."""
    if isinstance(value, str) and value.startswith(("/", "~", "${")):
        return f"'{shown_path(value)}'"
    return "null" if value is None else excerpt(repr(value))
