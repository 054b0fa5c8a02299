"""Folders that are there whole or not at all, and that say of each file in them what it is. Loads no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict


class FileRecord(TypedDict):
    size: int
    sha256: str


def describe_files(folder: Path) -> dict[str, FileRecord]:
    """Size and sha256 of every file in `folder`, by its relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }


def damaged_files(folder: Path, files: Mapping[str, FileRecord], *, read: bool = True) -> list[str]:
    """A line for each of `files` of `folder` that is missing or cut short, or, where they are `read`, changed."""
    problems = []
    for name, said in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != said["size"]:
            problems.append(f"{name}: {path.stat().st_size} bytes, but {said['size']} were written")
        elif read and sha256(path) != said["sha256"]:
            problems.append(f"{name}: its bytes are not those that were written (sha256 differs)")
    return problems


def occupied(folder: Path) -> str | None:
    """What keeps `folder` from being a new one, in words: it is a file, or there is something in it."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file"
    return "is not empty" if any(folder.iterdir()) else None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_folder(folder: Path) -> Path:
    """Where `folder` is written until it is whole: beside it, so that a rename suffices."""
    return folder.with_name(f".{folder.name}.partial")


def replaced_folder(folder: Path) -> Path:
    """Where the former folder lies between the two renames that replace it."""
    return folder.with_name(f".{folder.name}.replaced")


def begin(folder: Path, *, alone: bool = False) -> Path:
    """An empty partial folder for `folder`; whether that may be replaced is for the caller to know.

    One that is there is emptied.

    Raises:
        FileExistsError: one is there, and `alone` says that it may be somebody else's.
    """
    partial = partial_folder(folder)
    if not alone:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def commit(folder: Path) -> None:
    """Makes the partial folder of `folder` the real one, after everything in it has reached the disk."""
    partial, replaced = partial_folder(folder), replaced_folder(folder)
    mode = (
        partial.stat().st_mode & 0o666
    )  # what the umask lets files have: safetensors lets nobody else read its own
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
