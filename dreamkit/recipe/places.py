"""Keys of a recipe as dotted paths, and the places where they were written."""

from __future__ import annotations

from collections.abc import Mapping

from dreamkit.errors import ConfigError, RecipeProblem


def refusals(error: BaseException, key: str, places: Mapping[str, str]) -> list[RecipeProblem]:
    """What a part refuses of the section `key`, each at the key it is about."""
    whole = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    refused = error.problems if isinstance(error, ConfigError) else {"": whole or type(error).__name__}
    found = [(join(key, inner), message) for inner, message in refused.items()]
    return [RecipeProblem(place(places, inner), inner or "recipe", message) for inner, message in found]


def place(places: Mapping[str, str], key: str) -> str:
    """Where `key`, or else the section around it, was written: `file:line`."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, "recipe")


def join(*steps: object) -> str:
    """A dotted key path."""
    return ".".join(str(step) for step in steps if step != "")
