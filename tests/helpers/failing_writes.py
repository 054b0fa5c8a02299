"""Writes that the operating system refuses: a limit on the size of files, and one operation that fails."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import sys
from collections.abc import Callable, Iterator
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
    if not _active or event not in ("open", "os.mkdir", "os.rename", "os.link"):
        return
    if event == "open" and not arguments[2] & WRITING:
        return
    path = arguments[1] if event in ("os.rename", "os.link") else arguments[0]
    if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(_active[0].folder):
        _active[0].count(f"{event} {path}")


@contextmanager
def failing_operation(
    folder: Path, number: int, patch: pytest.MonkeyPatch, *, writes: bool = False
) -> Iterator[Failing]:
    """Let operation `number` (from 1) of Python below `folder` fail: opening for writing, mkdir, rename, link, fsync.

    With `writes`, each write to a file is an operation, too. Libraries that are not written in Python are not counted.
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
        if writes:
            during.setattr(io, "open", counted_open := _counted_open(failing))  # of `pathlib`
            during.setattr(builtins, "open", counted_open)
        _active.append(failing)
        try:
            yield failing
        finally:
            _active.pop()


_hooks: list[Any] = []


class _CountedFile(io.FileIO):
    """A file whose writes are operations of `failing`."""

    def __init__(self, file: str, mode: str, failing: Failing) -> None:
        super().__init__(file, mode)
        self.failing = failing

    def write(self, data: Any) -> int:
        self.failing.count(f"write {self.name!r}")
        return super().write(data)


def _counted_open(failing: Failing) -> Callable[..., Any]:
    real = io.open

    def counted(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **named: Any) -> Any:
        is_path = isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(failing.folder)
        if not is_path or not set(mode) & set("wax+"):
            return real(file, mode, buffering, *text, **named)
        raw = _CountedFile(os.fspath(file), mode.replace("b", "").replace("t", ""), failing)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **named)

    return counted
