"""Paths that remember the environment variables in them, so that files hold the names and not the values."""

from __future__ import annotations

from pathlib import Path

from dreamkit.errors import excerpt
from dreamkit.recipe.interpolations import escape, has_variable
from dreamkit.storage.paths import shown_path


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


def as_path(cls: type, text: str) -> str | Path:
    """Return a path as a `str` or `Path`, as `cls` is; one with environment variables remembers them."""
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
    return excerpt(repr(value))
