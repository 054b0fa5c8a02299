"""Paths as users write them, with `~` for a home folder, and kinds of files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from dreamkit.errors import DreamkitError, OutputError, excerpt, printable

LONGEST_PATH: Final = 4096  # Linux's PATH_MAX; macOS has 1024


def written_path(text: str | Path, folder: Path | None = None) -> Path:
    """Return `text` as a path, with `~` expanded; a relative path starts from `folder`.

    Raises:
        DreamkitError: an impossible path: an empty one, an overlong name or the home of an unknown user.
    """
    if not str(text):
        raise DreamkitError("expected a path, got ''; write . for the folder of this file")
    try:
        path = (folder or Path()) / Path(text).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # it may exist later, or for another user
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DreamkitError(f"invalid path '{shown_path(text)}': {reason}") from error
    return path


def output_folder(path: Path | str) -> Path:
    """Return the absolute path of a folder to write.

    Raises:
        OutputError: the path is empty, which would be the working folder.
    """
    if not str(path):
        raise OutputError("expected the path of a folder to write, got ''")
    return Path(path).absolute()


KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def irregular_kind(path: Path) -> str | None:
    """Return the kind of a path that is not a regular file, such as "a folder" or "a named pipe", else None.

    Links are followed. To open a pipe or a device may wait forever, so ask before opening.

    Raises:
        OSError: the path does not exist or cannot be reached.
    """
    mode = os.stat(path).st_mode
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "a special file")


def shown_path(path: str | Path) -> str:
    """Return a path for an error message. It is whole, unless it is longer than any system's paths."""
    return printable(str(path)) if len(str(path)) <= LONGEST_PATH else excerpt(str(path))
