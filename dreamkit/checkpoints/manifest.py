"""The manifest of a checkpoint folder. This module loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, TypedDict

from dreamkit.errors import CheckpointError, DreamkitError, excerpt
from dreamkit.recipe.sections import PARTS
from dreamkit.storage.folder_manifest import FolderManifest

MOST_PROCESSES: Final = 100_000  # of a checkpoint: the number is in the names of its files


class ComponentRecord(TypedDict):
    """The component of a part, and its distribution."""

    kind: str
    name: str
    distribution: str
    version: str


class SourceRecord(TypedDict):
    """The name of a source of weights, and the sha256 of each of its files."""

    name: str
    files: dict[str, str]


@dataclass(frozen=True)
class Manifest(FolderManifest):
    """The content of `dreamkit.json`.

    `recipe` has plain values, absolute paths and every default. `components` has name, distribution and version of each
    part's component. `tokens` maps special tokens to ids. `sources` has the name and file hashes of each part's source.
    `parts` counts the saved tensors of each part, and `adapters` those of its adapter. `processes` is the number of
    processes that wrote a file of slices each; 1 if the parts and adapters have files of their own.
    """

    KIND: ClassVar[str] = "checkpoint"
    FILE: ClassVar[str] = "dreamkit.json"
    FORMAT: ClassVar[int] = 3
    PORTABLE: ClassVar[int] = 2  # format of checkpoints without slices, which earlier releases read
    ERROR: ClassVar[type[DreamkitError]] = CheckpointError

    recipe: dict[str, Any]
    components: dict[str, ComponentRecord]
    tokens: dict[str, int]
    sources: dict[str, SourceRecord]
    parts: dict[str, int]
    adapters: dict[str, int]
    processes: int

    @property
    def slice_files(self) -> list[str]:
        """Names of the files of slices; none if the parts and adapters have files of their own."""
        return [
            slice_file(number, self.processes) for number in range(self.processes if self.is_sliced else 0)
        ]

    @property
    def is_sliced(self) -> bool:
        """True if the files hold slices of tensors, one file for each process that wrote the checkpoint."""
        return self.format > self.PORTABLE

    def content(self) -> dict[str, Any]:
        content = super().content()
        if not self.is_sliced:
            del content["processes"]
        return content

    @classmethod
    def read(cls, folder: Path, *, verify: bool = True) -> Manifest:
        """Read the manifest of `folder`; with `verify`, compare every file with it.

        Raises:
            CheckpointError: not a checkpoint, a newer format, or a damaged or missing file.
        """
        manifest = super().read(folder)
        components = {key: _current_record(record) for key, record in manifest.components.items()}
        manifest = replace(manifest, components=components)
        if verify:
            manifest.verify(folder)
        return manifest

    @classmethod
    def find_hint(cls, folder: Path) -> str:
        inside = folder / "checkpoint"  # that of a run or of the demo
        if (inside / cls.FILE).is_file():
            return f"did you mean {inside}?"
        points = [path for path in (folder / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
        if points:  # of a run that has not ended
            return f"did you mean {max(points, key=lambda path: int(path.name[5:]))}?"
        return "name the `checkpoint` in the --out folder of `dreamkit train`"

    @classmethod
    def repair_hint(cls, folder: Path) -> str:
        return "copy it again or use another"

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("format") == 1:  # adapters were in the weight files of their parts
            data = {"adapters": {}, **data}
        return data if data.get("format") == cls.FORMAT else {"processes": 1, **data}

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if not 1 <= self.processes <= MOST_PROCESSES:
            yield f"processes: expected an integer from 1 to {MOST_PROCESSES}, got {self.processes}"
        elif self.is_sliced:
            for name in self.slice_files:
                if name not in self.files:
                    yield f"files: missing {name}, one of {self.processes}"
        else:
            yield from self._missing_files()
        for part in sorted(self.adapters.keys() - ({*self.components} & {*PARTS})):
            yield f"adapters: '{part}' is not in components"
        yield from self._component_contradictions()

    def _missing_files(self) -> Iterator[str]:
        """Yield a line for each part and adapter without a file of its own."""
        for key, counts, file_of in (
            ("parts", self.parts, weights_file),
            ("adapters", self.adapters, adapter_file),
        ):
            for part in counts:
                if file_of(part) not in self.files:
                    yield f"{key}: '{part}' has no file {file_of(part)}"

    def _component_contradictions(self) -> Iterator[str]:
        """Yield a line for each component that is not the recipe's."""
        expected = {key: f"{kind} '{name}'" for key, kind, name in component_sections(self.recipe)}
        actual = {key: f"{record['kind']} '{record['name']}'" for key, record in self.components.items()}
        for key in sorted(expected.keys() | actual.keys()):
            names = [excerpt(names.get(key, "none")) for names in (expected, actual)]
            if names[0] != names[1]:
                yield f"components: {key}: expected {names[0]}, as in its recipe, got {names[1]}"


def component_sections(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield key, kind and component name of each component in a recipe of plain values."""
    model = recipe.get("model")
    sections = {key: model.get(key) for key in PARTS} if isinstance(model, dict) else {}
    kinds = {key: "projector" if key.endswith("_projector") else key for key in PARTS}
    for name in ("data", "held_out"):
        listed = recipe.get(name)
        for number, section in enumerate(listed if isinstance(listed, list) else ()):
            sections[f"{name}.{number}"], kinds[f"{name}.{number}"] = section, "dataset"
    for key, section in sections.items():
        if isinstance(section, dict):
            yield key, kinds[key], str(section.get("name"))


def slice_file(number: int, processes: int) -> str:
    """Return the name of the checkpoint file with the slices that a process, numbered from 0, wrote."""
    return f"weights-{number + 1:05d}-of-{processes:05d}.safetensors"


def weights_file(part: str) -> str:
    """Return the name of the checkpoint file with the tensors of a part, except its adapter."""
    return f"{part}.safetensors"


def adapter_file(part: str) -> str:
    """Return the name of the checkpoint file with the adapter of a part; peft's other files are beside it."""
    return f"adapters/{part}/adapter_model.safetensors"


def _current_record(component: ComponentRecord) -> ComponentRecord:
    """Return the record with the core's present distribution name, which was "dreamkit" in older checkpoints."""
    if component["distribution"] != "dreamkit":
        return component
    return {**component, "distribution": "dreamkit-core"}
