"""The manifest of a checkpoint folder. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from dreamkit.errors import CheckpointError, DreamkitError
from dreamkit.storage.folders import FileRecord, damaged_files, left_behind, occupied

FORMAT = 2
MANIFEST = "dreamkit.json"
_WORDS = {int: "a whole number", float: "a number", str: "text", list: "a list"}


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
class Manifest:
    """What `dreamkit.json` says.

    `recipe` is resolved and plain. `components` names, for each part, what the recipe calls it and the distribution
    and version that gave it. `tokens` maps special tokens to ids. `sources` holds, for each part that stands on
    pretrained files, their name and hashes. `parts` counts the tensors held for each part, and `adapters` those of its
    adapter. `files` gives size and sha256 of every file in the folder.
    """

    format: int
    dreamkit: str
    recipe: dict[str, Any]
    components: dict[str, ComponentRecord]
    tokens: dict[str, int]
    sources: dict[str, SourceRecord]
    parts: dict[str, int]
    adapters: dict[str, int]
    files: dict[str, FileRecord]

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, *, verify: bool = True) -> Manifest:
        """The manifest of `folder`; with `verify`, every file is read and compared with it.

        Raises:
            CheckpointError: not a checkpoint, one of a newer format, or one with a damaged or missing file.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise CheckpointError(_not_a_checkpoint(folder))
        data = read_json(path, FORMAT, CheckpointError)
        if (
            isinstance(data, dict) and data.get("format") == 1
        ):  # it had adapters among the weights of their parts
            data = {"adapters": {}, **data}
        if problems := [*misfits(data, get_type_hints(cls))]:
            raise CheckpointError(_damaged(path, problems))
        manifest = cls(**data)
        if problems := [*manifest._contradictions()]:
            raise CheckpointError(_damaged(path, problems))
        if verify:
            manifest.verify(folder)
        return manifest

    def verify(self, folder: Path) -> None:
        """Reads every file and compares size and hash.

        Raises:
            CheckpointError: a file is missing, cut short or changed; all of them are named.
        """
        if problems := damaged_files(folder, self.files):
            raise CheckpointError(_damaged(folder, problems))

    def _contradictions(self) -> Iterator[str]:
        if self.format < 1:
            yield f"format: {self.format} found, but the first version is 1"
        for name in self.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                yield f"files: '{name}' is not inside the checkpoint"
        for key, held, file_of in (
            ("parts", self.parts, weights_file),
            ("adapters", self.adapters, adapter_file),
        ):
            for part in held:
                if file_of(part) not in self.files:
                    yield f"{key}: '{part}' found, but no file {file_of(part)}"
        for part in sorted(self.adapters.keys() - self.components.keys()):
            yield f"adapters: '{part}' found, but it is not among the components"


def read_json(path: Path, newest: int, refusal: type[DreamkitError]) -> Any:
    """What is in a manifest's file, of no newer format than `newest`; else the error `refusal`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise refusal(f"{path}: not a manifest of dreamkit: {type(error).__name__}: {error}") from error
    version = data.get("format") if isinstance(data, dict) else None
    if type(version) is int and version > newest:
        raise refusal(
            f"{path}: format version {version}, written by dreamkit {data.get('dreamkit', '?')}, but this "
            f"dreamkit reads versions up to {newest}; install a newer dreamkit"
        )
    return data


def misfits(value: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """Where `value`, read from JSON, is not of the type `wanted`; a dict of types by key stands for a record."""
    if wanted is Any:
        return
    if is_typeddict(wanted):
        wanted = get_type_hints(wanted)
    at, below = key or "the manifest", f"{key}." if key else ""
    if isinstance(wanted, dict) and isinstance(value, dict):
        if differing := sorted(wanted.keys() ^ value.keys()):
            yield f"{at}: missing or unknown: {', '.join(differing)}"
        for name in sorted(wanted.keys() & value.keys()):
            yield from misfits(value[name], wanted[name], below + name)
    elif get_origin(wanted) is dict and isinstance(value, dict):
        for name, item in value.items():
            yield from misfits(item, get_args(wanted)[1], below + name)
    elif get_origin(wanted) is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from misfits(item, get_args(wanted)[0], f"{below}{number}")
    elif type(value) is not wanted:
        words = (
            "an object" if isinstance(wanted, dict) else _WORDS.get(get_origin(wanted) or wanted, "an object")
        )
        yield f"{at}: {json.dumps(value):.60} found, but {words} is wanted"


def weights_file(part: str) -> str:
    """The name of the file, in a checkpoint, that holds what there is of a part but its adapter."""
    return f"{part}.safetensors"


def adapter_file(part: str) -> str:
    """The name of the file, in a checkpoint, that holds the adapter of a part; in its folder are peft's others."""
    return f"adapters/{part}/adapter_model.safetensors"


def _damaged(where: Path, problems: list[str]) -> str:
    listed = "\n".join(f"  {problem}" for problem in problems)
    return f"{where}: the checkpoint is damaged; copy it again or use another:\n{listed}"


def refuse_to_replace(folder: Path) -> None:
    """
    Raises:
        CheckpointError: `folder` holds something that is not a checkpoint, and would be lost.
    """
    what = occupied(folder)
    if what is not None and not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} {what}, and is not a checkpoint; name another folder, or remove it")


def _not_a_checkpoint(folder: Path) -> str:
    if left := left_behind(folder, MANIFEST):
        return left
    if folder.is_dir():
        found = f"it has no {MANIFEST}"
    else:
        found = "it is a file" if folder.exists() else "there is no such folder"
    return f"{folder} is not a checkpoint: {found}; name the folder that `dreamkit train --out` wrote `checkpoint` into"
