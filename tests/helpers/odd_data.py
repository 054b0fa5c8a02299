"""Data sets of a third party that cannot be trained on, each in another way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamkit.data.dataset import Dataset
from dreamkit.document import Document, Text
from dreamkit.errors import ConfigError, DocumentError
from dreamkit.registry.hookspecs import Component
from dreamkit.registry.kinds import KINDS, Registered
from dreamkit.registry.registry import Registry


class Words(Dataset):
    """Documents of one word each; subclasses break one method."""

    @dataclass(frozen=True)
    class Config:
        number: int = 3

    def __init__(self, config: Any) -> None:
        self.config = config

    def __len__(self) -> int:
        return int(self.config.number)

    def __getitem__(self, index: int) -> Document:
        return Document((Text("word"),), name=f"word {index}")


class Noted(Words):
    notes = ("words: not read: 7 letters",)


class Void(Words):
    def __len__(self) -> int:
        return 0


class Uncounted(Words):
    def __len__(self) -> int:
        raise KeyError("number")


class Absent(Words):
    def __init__(self, config: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "words.txt")


class Unset(Words):
    def __init__(self, config: Any) -> None:
        raise ConfigError({"number": "expected an even number, got 3"})


class Leaving(Words):
    def __init__(self, config: Any) -> None:
        raise SystemExit(3)


class Torn(Words):
    def __getitem__(self, index: int) -> Document:
        raise DocumentError(f"words:{index + 1}: expected a word")


class Clumsy(Words):
    def __getitem__(self, index: int) -> Document:
        raise ZeroDivisionError("division by zero")


class Untyped(Words):
    def __getitem__(self, index: int) -> Any:
        return {"text": "word"}


BROKEN: Mapping[type[Dataset], str] = {
    Void: "data.0: no documents",
    Uncounted: "data.0: KeyError: 'number'",
    Absent: "data.0: FileNotFoundError: [Errno 2] No such file or directory: 'words.txt'",
    Unset: "data.0.number: expected an even number, got 3",
    Leaving: "data.0: SystemExit: 3",
    Torn: "data.0: words:1: expected a word",
    Clumsy: "data.0: ZeroDivisionError: division by zero",
    Untyped: "data.0: expected a Document from Untyped, got a dict; fix its plug-in",
}
"""The message about each data set, in a recipe that has it first."""


def registry() -> Registry:
    """Return a registry of the installed components and of these data sets, by their names in lower case."""
    installed = Registry.load()
    known = [component for kind in KINDS for component in installed.components(kind).values()]
    odd = [
        Registered(
            Component(cls.__name__.lower(), f"odd_data:{cls.__name__}"), "dataset", "odd", "1.0", "odd"
        )
        for cls in (Words, Noted, *BROKEN)
    ]
    return Registry([*known, *odd])
