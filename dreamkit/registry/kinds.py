"""The kinds of components, and the records of what plug-ins give and of what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreamkit.registry.hookspecs import Component


@dataclass(frozen=True)
class Kind:
    """The hook that gives components of one kind, and the class of `dreamkit` they derive from."""

    hook: str
    interface: str


KINDS: Mapping[str, Kind] = {
    "vision_encoder": Kind("dreamkit_vision_encoders", "VisionEncoder"),
    "language_model": Kind("dreamkit_language_models", "LanguageModel"),
    "projector": Kind("dreamkit_projectors", "Projector"),
    "image_decoder": Kind("dreamkit_image_decoders", "ImageDecoder"),
    "dataset": Kind("dreamkit_datasets", "Dataset"),
    "task": Kind("dreamkit_tasks", "Task"),
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with one plug-in: its entry point, its distribution with version, and why."""

    entry_point: str
    distribution: str
    message: str

    def __str__(self) -> str:
        return f"plug-in '{self.entry_point}' of {self.distribution}: {self.message}"


@dataclass(frozen=True)
class Registered:
    """A component and who gives it."""

    component: Component
    kind: str
    distribution: str
    version: str
    entry_point: str

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe inside a plug-in's package; `origin` is its distribution with version."""

    name: str
    path: Path
    origin: str
    entry_point: str
