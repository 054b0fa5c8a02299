"""Recipe keys as dotted paths, and the place (`file:line`) of each."""

from __future__ import annotations

from collections.abc import Mapping

from dreamkit.errors import ConfigError, DreamkitError, RecipeProblem, describe_error, excerpt

MOST = 1000  # characters of a plug-in's own message


def config_problems(
    error: BaseException, key: str, places: Mapping[str, str], source: str | None = None
) -> list[RecipeProblem]:
    """Return the problems of the section `key` that a part reported by raising `error`.

    A library's error, which names no file, is about the part's `source`, if it has one.
    """
    messages = error.problems if isinstance(error, ConfigError) else {"": _message(error, source)}
    by_path = {join(key, inner): message for inner, message in messages.items()}
    return [
        RecipeProblem(place(places, path), path or "recipe", message) for path, message in by_path.items()
    ]


def _message(error: BaseException, source: str | None) -> str:
    if isinstance(error, DreamkitError):
        return str(error)
    if source is not None:
        return f"the files of '{source}' do not make this part: {describe_error(error)}; name another source"
    text = " ".join(str(error).split()) if isinstance(error, ValueError) else ""
    return excerpt(text, MOST) if text else describe_error(error)


def place(places: Mapping[str, str], key: str) -> str:
    """Return the `file:line` of `key`, or of the section around it if `key` is not written."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, "recipe")


def join(*steps: object) -> str:
    """Return a dotted key path."""
    return ".".join(str(step) for step in steps if step != "")
