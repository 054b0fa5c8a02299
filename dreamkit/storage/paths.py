"""Paths as people write them: `~` stands for a home, and what can be no path at all is an error in words."""

from __future__ import annotations

import os
from pathlib import Path

from dreamkit.errors import DreamkitError


def written_path(text: str | Path, folder: Path | None = None) -> Path:
    """`text` as a path, with `~` expanded; a relative one starts from `folder`, where that is given.

    Raises:
        DreamkitError: nothing can ever be there, such as under an over-long name or in the home of nobody.
    """
    try:
        path = (folder or Path()) / Path(text).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # it may be there another time, or for another user
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DreamkitError(f"invalid path '{excerpt(str(text))}': {reason}") from error
    return path


def excerpt(text: str, most: int = 80) -> str:
    """Any text, made fit for an error message: its beginning, in characters that can be printed."""
    shown = text if len(text) <= most else f"{text[:most]}..."
    return shown.encode(errors="backslashreplace").decode()
