"""The manifest of a checkpoint folder. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from dreamkit.errors import CheckpointError, DreamkitError
from dreamkit.storage.folder_manifest import FolderManifest


class ComponentRecord(TypedDict):
    """What a recipe calls a part, and who gave it."""

    kind: str
    name: str
    distribution: str
    version: str


class SourceRecord(TypedDict):
    """The name of pretrained files, and the sha256 of each."""

    name: str
    files: dict[str, str]


@dataclass(frozen=True)
class Manifest(FolderManifest):
    """What `dreamkit.json` says.

    `recipe` is resolved and plain. `components` names, for each part, what the recipe calls it and the distribution
    and version that gave it. `tokens` maps special tokens to ids. `sources` holds, for each part that stands on
    pretrained files, their name and hashes. `parts` counts the tensors held for each part, and `adapters` those of its
    adapter.
    """

    KIND: ClassVar[str] = "checkpoint"
    FILE: ClassVar[str] = "dreamkit.json"
    FORMAT: ClassVar[int] = 2
    ERROR: ClassVar[type[DreamkitError]] = CheckpointError

    recipe: dict[str, Any]
    components: dict[str, ComponentRecord]
    tokens: dict[str, int]
    sources: dict[str, SourceRecord]
    parts: dict[str, int]
    adapters: dict[str, int]

    @classmethod
    def read(cls, folder: Path, *, verify: bool = True) -> Manifest:
        """The manifest of `folder`; with `verify`, every file is read and compared with it.

        Raises:
            CheckpointError: not a checkpoint, one of a newer format, or one with a damaged or missing file.
        """
        written = super().read(folder)
        manifest = replace(
            written, components={key: _renamed(each) for key, each in written.components.items()}
        )
        if verify:
            manifest.verify(folder)
        return manifest

    @classmethod
    def find_hint(cls, folder: Path) -> str:
        inside = folder / "checkpoint"  # where a run and the demo write theirs
        if (inside / cls.FILE).is_file():
            return f"did you mean {inside}?"
        return "name the folder that `dreamkit train --out` wrote `checkpoint` into"

    @classmethod
    def mend_hint(cls, folder: Path) -> str:
        return "copy it again or use another"

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        # format 1 had adapters among the weights of their parts
        return {"adapters": {}, **data} if data.get("format") == 1 else data

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        for key, held, file_of in (
            ("parts", self.parts, weights_file),
            ("adapters", self.adapters, adapter_file),
        ):
            for part in held:
                if file_of(part) not in self.files:
                    yield f"{key}: '{part}' found, but no file {file_of(part)}"
        for part in sorted(self.adapters.keys() - self.components.keys()):
            yield f"adapters: '{part}' found, but it is not among the components"


def weights_file(part: str) -> str:
    """The name of the file, in a checkpoint, that holds what there is of a part but its adapter."""
    return f"{part}.safetensors"


def adapter_file(part: str) -> str:
    """The name of the file, in a checkpoint, that holds the adapter of a part; in its folder are peft's others."""
    return f"adapters/{part}/adapter_model.safetensors"


def _renamed(component: ComponentRecord) -> ComponentRecord:
    """Return the record with the core's distribution by its present name; older checkpoints have its former one."""
    return (
        {**component, "distribution": "dreamkit-core"}
        if component["distribution"] == "dreamkit"
        else component
    )
