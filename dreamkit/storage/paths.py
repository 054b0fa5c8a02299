"""Paths as users write them, with `~` for a home folder, and short excerpts of long text."""

from __future__ import annotations

import os
from pathlib import Path

from dreamkit.errors import DreamkitError


def written_path(text: str | Path, folder: Path | None = None) -> Path:
    """Return `text` as a path, with `~` expanded; a relative path starts from `folder`.

    Raises:
        DreamkitError: an impossible path, such as an overlong name or the home of an unknown user.
    """
    try:
        path = (folder or Path()) / Path(text).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # it may exist later, or for another user
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DreamkitError(f"invalid path '{excerpt(str(text))}': {reason}") from error
    return path


def excerpt(text: str, most: int = 80) -> str:
    """Return the beginning of a text for an error message, in characters that can be printed."""
    shown = text if len(text) <= most else f"{text[:most]}..."
    return shown.encode(errors="backslashreplace").decode()
