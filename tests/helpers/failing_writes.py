"""Writes that the operating system refuses: a limit on the size of files, and one operation that fails."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def content(folder: Path) -> dict[str, bytes | None]:
    """Return the content of each file below `folder`, also of hidden ones, by its path; None for others."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit the size of files that this process writes, as `ulimit -f` does: the error is EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass
class Failing:
    """A countdown of operations below `folder` that write: the one that reaches 0 fails."""

    folder: str
    left: int
    failed: str = ""

    def count(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.failed = name
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


_active: list[Failing] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active or event not in ("open", "os.mkdir", "os.rename"):
        return
    if event == "open" and not arguments[2] & WRITING:
        return
    path = arguments[1] if event == "os.rename" else arguments[0]
    if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(_active[0].folder):
        _active[0].count(f"{event} {path}")


@contextmanager
def failing_operation(folder: Path, number: int, patch: pytest.MonkeyPatch) -> Iterator[Failing]:
    """Let operation `number` (from 1) of Python below `folder` fail: opening for writing, mkdir, rename, fsync.

    Libraries that are not written in Python are not counted.
    """
    if _audit not in _hooks:
        sys.addaudithook(_audit)  # it stays until the process ends
        _hooks.append(_audit)
    failing = Failing(str(folder), number)
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        failing.count("fsync")
        fsync(descriptor)

    with patch.context() as during:
        during.setattr(os, "fsync", counted)
        _active.append(failing)
        try:
            yield failing
        finally:
            _active.pop()


_hooks: list[Any] = []
