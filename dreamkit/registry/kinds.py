"""The kinds of components, and the records of a plug-in's components, recipes and problems."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from dreamkit.registry.hookspecs import Component


@dataclass(frozen=True)
class Kind:
    """A kind of components: the hook that returns them, and the class of `dreamkit` that is their base.

    Components without such an `interface` are functions and typer apps. A name has at most `words` words.
    """

    hook: str
    interface: str | None
    words: int = 1


KINDS: Mapping[str, Kind] = {
    "vision_encoder": Kind("dreamkit_vision_encoders", "VisionEncoder"),
    "language_model": Kind("dreamkit_language_models", "LanguageModel"),
    "projector": Kind("dreamkit_projectors", "Projector"),
    "image_decoder": Kind("dreamkit_image_decoders", "ImageDecoder"),
    "dataset": Kind("dreamkit_datasets", "Dataset"),
    "task": Kind("dreamkit_tasks", "Task"),
    "command": Kind("dreamkit_commands", None, words=2),
}


@dataclass(frozen=True)
class Problem:
    """A problem of one plug-in: its entry point, its distribution with version, and the message.

    `is_note`: the plug-in works nevertheless.
    """

    entry_point: str
    distribution: str
    message: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"plug-in '{self.entry_point}' of {self.distribution}: {self.message}"


@dataclass(frozen=True)
class Registered:
    """A component and its plug-in; `is_core` is True for components of dreamkit itself."""

    component: Component
    kind: str
    distribution: str
    version: str
    entry_point: str
    is_core: bool = False

    @property
    def name(self) -> str:
        return self.component.name

    @property
    def origin(self) -> str:
        """The distribution with its version."""
        return f"{self.distribution} {self.version}"

    @property
    def is_own_command(self) -> bool:
        """True for a command of dreamkit itself, which no plug-in can replace."""
        return self.kind == "command" and self.is_core


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe in a plug-in's package; `origin` is its distribution with version."""

    name: str
    path: Path
    origin: str
    entry_point: str

    @property
    def summary(self) -> str:
        """The first sentence of the comment at the top of the file, or "" without a comment."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        comment = takewhile(str.strip, (line[1:] for line in takewhile(lambda line: line[:1] == "#", lines)))
        return re.split(r"(?<=[.!?])\s", " ".join(map(str.strip, comment)), maxsplit=1)[0]
