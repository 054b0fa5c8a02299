"""Folders that appear only when complete, and records of their files. This module loads no torch."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypedDict

from dreamkit.errors import OutputError, count, surrogate_problem
from dreamkit.interrupts import deferred
from dreamkit.storage.locks import INSIDE, exclusive
from dreamkit.storage.paths import shown_path
from dreamkit.storage.writing import STAGING, writing

# The libraries that read and write tensors and tokenizers take no other paths.
NOT_UTF8: Final = "has a path that is not UTF-8"
NO_NAME: Final = re.compile(r"(?!)")


class FileRecord(TypedDict):
    size: int
    sha256: str


def describe_files(
    folder: Path, records: Mapping[str, FileRecord] = MappingProxyType({})
) -> dict[str, FileRecord]:
    """Return size and sha256 of every file in `folder`, by its relative name. Those in `records` are not read."""
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {name: records.get(name) or describe_file(path) for name, path in files.items()}


def describe_file(path: Path) -> FileRecord:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


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
    used = any(entry.name not in (INSIDE, STAGING) for entry in folder.iterdir())
    return "is not empty" if used else None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_folder(folder: Path) -> Path:
    """Return the folder, beside `folder`, that is written until a rename completes `folder`. Links are followed."""
    folder = Path(os.path.realpath(folder))
    return folder.with_name(f".{folder.name}.partial")


def replaced_folder(folder: Path) -> Path:
    """Return the place of the old folder between the two renames that replace it. Links are followed."""
    folder = Path(os.path.realpath(folder))
    return folder.with_name(f".{folder.name}.replaced")


def restore_replaced(folder: Path) -> None:
    """Give an old `folder` its name back, after a process was killed between the two renames that replace it."""
    target, replaced = Path(os.path.realpath(folder)), replaced_folder(folder)
    if replaced.exists() and not target.exists():
        replaced.rename(target)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `folder` at the end of the block; an old `folder` stays until then.

    `folder` is locked. After an error in the block, the new folder is removed. The block checks that `folder` may be
    replaced.

    Raises:
        OutputError: another process is writing `folder`, it is a mount point, or it cannot be written.
    """
    refuse_mount_point(folder)
    partial = partial_folder(folder)
    with exclusive(folder):
        clean(folder)
        with writing(folder):
            partial.mkdir()
        was_used = in_use_reason(folder) is not None
        try:
            yield partial
            put_in_place(partial, folder, may_replace=was_used)
        finally:
            remove_folder(partial)


def refuse_mount_point(folder: Path) -> None:
    """Check that `folder` can be replaced by a rename.

    Raises:
        OutputError: it is a mount point.
    """
    if os.path.ismount(os.path.realpath(folder)):
        raise OutputError(
            f"{shown_path(folder)} is a mount point and cannot be replaced; name a folder in it"
        )


def clean(folder: Path) -> None:
    """Remove what a killed process left beside `folder`, which the caller has locked; restore an old `folder`.

    Raises:
        OutputError: the folder above cannot be written.
    """
    with writing(folder):
        restore_replaced(folder)
        remove_folder(replaced_folder(folder))
        remove_folder(partial_folder(folder))


def put_in_place(new: Path, folder: Path, *, may_replace: bool) -> None:
    """Make the complete folder `new` to `folder`, which the caller has locked, when all its files are on the disk.

    Args:
        new: a folder on the same disk.
        folder: its later path; links are followed.
        may_replace: flag: an old `folder` is replaced.

    Raises:
        OutputError: `folder` is in use and not to be replaced, or cannot be written.
    """
    target, replaced = Path(os.path.realpath(folder)), replaced_folder(folder)
    if not may_replace and (reason := in_use_reason(target)):
        raise OutputError(
            f"{shown_path(folder)} {reason}: another program wrote it meanwhile; name another folder"
        )
    with deferred(), writing(folder):
        _complete(new)
        old = [(target, replaced)] if target.exists() else []
        _rename([*old, (new, target)], target.parent)
        remove_folder(replaced)


@contextmanager
def filled_folder(folder: Path, earlier: re.Pattern[str] = NO_NAME) -> Iterator[Path]:
    """Yield an empty folder whose files move into `folder` at the end of the block, beside the files there.

    `folder` is locked. Files in it whose names match `earlier` are removed then. An error leaves `folder` as it
    was.

    Raises:
        OutputError: another process is writing `folder`, or it cannot be written.
    """
    if not folder.is_dir():
        with atomic_folder(folder) as partial:
            yield partial
        return
    with exclusive(folder):
        staging = folder / STAGING
        old, new = staging / "old", staging / "new"
        try:
            with writing(folder):
                remove_folder(staging)
                old.mkdir(parents=True)
                new.mkdir()
            yield new
            with deferred(), writing(folder):
                _complete(new)
                leaving = [
                    path for path in folder.iterdir() if path.is_file() and earlier.fullmatch(path.name)
                ]
                moves = [(path, old / path.name) for path in leaving]
                _rename([*moves, *((path, folder / path.name) for path in sorted(new.iterdir()))], folder)
        finally:
            remove_folder(staging)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which the caller has locked; remove it at the end of the block."""
    target = Path(os.path.realpath(folder))
    scratch = target.with_name(f".{target.name}.scratch")
    remove_folder(scratch)  # of a process that was killed
    try:
        with writing(folder):
            scratch.mkdir()
        yield scratch
    finally:
        remove_folder(scratch)


def remove_folder(folder: Path) -> None:
    """Remove a folder or file if there is one. It is renamed first, so that a folder is never half there."""
    removed = folder
    if not folder.name.endswith(".removed"):  # by a process that was killed
        removed = folder.with_name(f".{folder.name.removeprefix('.')}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        try:
            folder.rename(removed)
        except OSError:
            removed = folder
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(OSError):
        removed.unlink()  # a file


def _complete(folder: Path) -> None:
    """Give the files of a new folder the permissions of the umask, and wait until all have reached the disk."""
    # safetensors makes its files readable for their owner only
    mode = folder.stat().st_mode & 0o666
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(mode)
        _sync(path)


def _rename(moves: Sequence[tuple[Path, Path]], folder: Path) -> None:
    """Rename paths in or below `folder` one by one; after an error, rename them back."""
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            moved.append((source, target))
        _sync(folder)
    except BaseException:
        for source, target in reversed(moved):
            target.rename(source)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
