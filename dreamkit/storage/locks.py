"""Locks between processes: the exclusive right to write a folder, and turns. This module loads no torch."""

from __future__ import annotations

import errno
import fcntl
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from dreamkit.errors import OutputError
from dreamkit.storage.paths import shown_path
from dreamkit.storage.writing import failed_write, writing

INSIDE: Final = ".dreamkit.lock"  # the lock file in a folder, if it cannot lie beside the folder
LOOK: Final = 0.05  # seconds after which a process that looks whether a file is locked has closed it
_UNSUPPORTED: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_held: set[int] = set()  # descriptors of this process's lock files


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Lock `folder`, which need not exist, against other processes that write it until the block ends.

    Yields the folder that has the lock file: the one above, or `folder` itself.

    The lock ends with the process, however that ends; the lock file may stay, and is used again. Missing folders above
    `folder` are created, and removed at the end if nothing was written.

    Raises:
        OutputError: another process holds the lock, or the lock file cannot be written.
    """
    place = Path(os.path.realpath(folder))
    missing = [parent for parent in place.parents if not parent.exists()]
    try:
        try:
            path, descriptor = _lock(place, folder)
        except OSError as error:
            raise OutputError(failed_write(shown_path(folder), error, folder)) from error
        with _holding(descriptor):
            try:
                yield path.parent
            finally:
                if descriptor in _held:  # not in a forked process
                    with suppress(OSError):  # while it is locked: others look whether theirs is still there
                        if path.stat().st_size == 0:  # not a file of the user with this name
                            path.unlink()
    finally:
        with suppress(OSError):  # it is not empty
            for parent in missing:
                parent.rmdir()


def is_locked(folder: Path) -> bool:
    """Return True if a process is writing `folder` in a block of `exclusive`; False if the file system has no locks."""
    place = Path(os.path.realpath(folder))
    return any(map(_is_locked, (place.with_name(f".{place.name}.lock"), place / INSIDE)))


@contextmanager
def taking_turns(path: Path, *, waiting: Callable[[], object]) -> Iterator[None]:
    """Lock the file `path`, which may be missing. If another process has locked it, call `waiting`, then wait.

    The lock ends with the process; the file stays. A file system without locks lets all processes in at once.

    Raises:
        OutputError: the lock file or its folder cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open(path)
    with _holding(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise OutputError(failed_write(shown_path(path), error, path.parent)) from error
        yield


@contextmanager
def _holding(descriptor: int) -> Iterator[None]:
    """Close a lock file at the end of the block, or in a forked process at once."""
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # there is none, or none that this user may see
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment, see `_lock_file`
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _lock(place: Path, folder: Path) -> tuple[Path, int]:
    """Create and lock the lock file of `place`; return its path and descriptor. Messages name `folder`.

    The file lies beside the folder, which may be swapped. It lies inside if it is not visible or possible beside.
    """
    inside = place / INSIDE
    if os.path.ismount(place):  # another machine or container may have it at another place
        return _lock_file(inside, folder)
    try:
        return _lock_file(place.with_name(f".{place.name}.lock"), folder)
    except OSError as error:
        if error.errno not in _READ_ONLY or not place.is_dir():
            raise
        return _lock_file(inside, folder)


def _lock_file(path: Path, folder: Path) -> tuple[Path, int]:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from error
        try:
            descriptor = _open(path)
        except FileNotFoundError:  # the process before has just removed the folder that it created
            if path.parent.is_dir():
                raise
            continue
        try:
            _lock_at_once(descriptor)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"{shown_path(folder)} is being written by another dreamkit command; wait until that ends, or name "
                "another folder"
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            warnings.warn(
                f"{shown_path(path)} cannot be locked ({error.strerror}); start no other command that writes this "
                "folder",
                stacklevel=2,
            )
        if _is_same(path, descriptor):
            return path, descriptor
        os.close(descriptor)  # the process before removed it after this one had opened it


def _lock_at_once(descriptor: int) -> None:
    """Lock a file; if it is locked, try once more, as a process that only looks holds its lock for a moment.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(LOOK)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open(path: Path) -> int:
    """Open the lock file, or create it. Another user's file can be read and locked, but not written."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release_in_child() -> None:
    """Close the lock files in a forked process: workers of a killed process must not hold its locks."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_release_in_child)
