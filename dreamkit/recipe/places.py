"""Recipe keys as dotted paths, and the place (`file:line`) of each."""

from __future__ import annotations

from collections.abc import Mapping

from dreamkit.errors import ConfigError, DreamkitError, RecipeProblem, describe_error


def config_problems(error: BaseException, key: str, places: Mapping[str, str]) -> list[RecipeProblem]:
    """Return the problems of the section `key` that a part reported by raising `error`."""
    if isinstance(error, ConfigError):
        messages = error.problems
    elif isinstance(error, DreamkitError):
        messages = {"": str(error)}
    else:
        messages = {"": describe_error(error).removeprefix("ValueError: ")}
    by_path = {join(key, inner): message for inner, message in messages.items()}
    return [
        RecipeProblem(place(places, path), path or "recipe", message) for path, message in by_path.items()
    ]


def place(places: Mapping[str, str], key: str) -> str:
    """Return the `file:line` of `key`, or of the section around it if `key` is not written."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, "recipe")


def join(*steps: object) -> str:
    """Return a dotted key path."""
    return ".".join(str(step) for step in steps if step != "")
