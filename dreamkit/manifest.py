"""The manifest of a checkpoint folder, and how a folder comes to be whole or not at all. Loads no torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dreamkit.errors import CheckpointError

FORMAT = 1
MANIFEST = "dreamkit.json"


@dataclass(frozen=True)
class Manifest:
    """What `dreamkit.json` says.

    `recipe` is resolved and plain. `components` names, for each part, what the recipe calls it and the distribution
    and version that gave it. `tokens` maps special tokens to ids. `sources` holds, for each part that stands on
    pretrained files, their name and hashes. `parts` counts the tensors held for each part. `files` gives size and
    sha256 of every file in the folder.
    """

    format: int
    dreamkit: str
    recipe: dict[str, Any]
    components: dict[str, dict[str, str]]
    tokens: dict[str, int]
    sources: dict[str, dict[str, Any]]
    parts: dict[str, int]
    files: dict[str, dict[str, Any]]

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
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: not a manifest of dreamkit: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(version, int) or version > FORMAT:
            raise CheckpointError(
                f"{path}: format version {version}, written by dreamkit {data.get('dreamkit', '?')}, but this "
                f"dreamkit reads versions up to {FORMAT}; install a newer dreamkit"
            )
        names = {field.name for field in fields(cls)}
        if names != data.keys():
            differing = ", ".join(sorted(names ^ data.keys()))
            raise CheckpointError(f"{path}: the manifest is damaged: missing or unknown: {differing}")
        manifest = cls(**data)
        if verify:
            manifest.verify(folder)
        return manifest

    def verify(self, folder: Path) -> None:
        """Reads every file and compares size and hash.

        Raises:
            CheckpointError: a file is missing, cut short or changed; all of them are named.
        """
        problems = []
        for name, said in sorted(self.files.items()):
            path = folder / name
            if not path.is_file():
                problems.append(f"{name}: missing")
            elif path.stat().st_size != said["size"]:
                problems.append(f"{name}: {path.stat().st_size} bytes, but {said['size']} were written")
            elif sha256(path) != said["sha256"]:
                problems.append(f"{name}: its bytes are not those that were written (sha256 differs)")
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            raise CheckpointError(
                f"{folder}: the checkpoint is damaged; copy it again or use another:\n{listed}"
            )


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file in `folder`, by its relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_folder(folder: Path) -> Path:
    """Where a checkpoint is written until it is whole: beside `folder`, so that a rename suffices."""
    return folder.with_name(f".{folder.name}.partial")


def replaced_folder(folder: Path) -> Path:
    """Where the former checkpoint lies between the two renames that replace it."""
    return folder.with_name(f".{folder.name}.replaced")


def begin(folder: Path) -> Path:
    """An empty partial folder for `folder`.

    Raises:
        CheckpointError: `folder` holds something that is not a checkpoint, and would be lost.
    """
    if (
        folder.exists()
        and not (folder / MANIFEST).is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise CheckpointError(f"{folder} exists and is not a checkpoint; name another folder, or remove it")
    partial = partial_folder(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def commit(folder: Path) -> None:
    """Makes the partial folder of `folder` the real one, after everything in it has reached the disk."""
    partial, replaced = partial_folder(folder), replaced_folder(folder)
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_a_checkpoint(folder: Path) -> str:
    for left in (replaced_folder(folder), partial_folder(folder)):
        if not folder.exists() and (left / MANIFEST).is_file():
            return f"{folder}: missing, but an interrupted save left {left}; rename that to {folder.name}"
    found = "there is no such folder" if not folder.is_dir() else f"it has no {MANIFEST}"
    return f"{folder} is not a checkpoint: {found}; name the folder that `dreamkit train --out` wrote `checkpoint` into"
