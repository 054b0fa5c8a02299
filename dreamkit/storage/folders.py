"""Folders that appear only when complete, and records of their files. This module loads no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypedDict

from dreamkit.errors import count, surrogate_problem

# The libraries that read and write tensors and tokenizers take no other paths.
NOT_UTF8: Final = "has a path that is not UTF-8"


class FileRecord(TypedDict):
    size: int
    sha256: str


def describe_files(folder: Path) -> dict[str, FileRecord]:
    """Return size and sha256 of every file in `folder`, by its relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }


def damaged_files(folder: Path, files: Mapping[str, FileRecord], *, read: bool = True) -> list[str]:
    """Return a line for each of `files` that is missing in `folder`, has another size or, if `read`, another hash."""
    problems = []
    for name, record in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != record["size"]:
            problems.append(f"{name}: expected {count(record['size'], 'byte')}, got {path.stat().st_size}")
        elif read and sha256(path) != record["sha256"]:
            problems.append(f"{name}: its content has changed (sha256 differs)")
    return problems


def in_use_reason(folder: Path) -> str | None:
    """Return why `folder` cannot be a new folder ("is a file", "is not empty"), or None if it can."""
    if surrogate_problem(str(folder.absolute())):
        return NOT_UTF8
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file"
    return "is not empty" if any(folder.iterdir()) else None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_folder(folder: Path) -> Path:
    """Return the folder, beside `folder`, that is written until a rename completes `folder`."""
    return folder.with_name(f".{folder.name}.partial")


def replaced_folder(folder: Path) -> Path:
    """Return the place of the old folder between the two renames that replace it."""
    return folder.with_name(f".{folder.name}.replaced")


def begin(folder: Path, *, alone: bool = False) -> Path:
    """Create the empty partial folder of `folder`. The caller checks that `folder` may be replaced.

    An existing partial folder is emptied, unless `alone`: then another process may be writing it.

    Raises:
        FileExistsError: `alone`, and there is a partial folder.
    """
    partial = partial_folder(folder)
    if not alone:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def commit(folder: Path) -> None:
    """Replace `folder` by its partial folder, after every file in that has reached the disk."""
    partial, replaced = partial_folder(folder), replaced_folder(folder)
    # by the umask, since safetensors makes its files readable for their owner only
    mode = partial.stat().st_mode & 0o666
    for path in [*partial.rglob("*"), partial]:
        if path.is_file():
            path.chmod(mode)
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
