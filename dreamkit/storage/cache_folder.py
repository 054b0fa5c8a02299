"""The user's folder of files that dreamkit can compute again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from dreamkit.storage.paths import written_path

VARIABLE: Final = "DREAMKIT_CACHE_FOLDER"  # the environment variable


def cache_folder() -> Path:
    """Return the absolute path of the folder, which need not exist.

    It is `DREAMKIT_CACHE_FOLDER` if that is set. Else it is `dreamkit` in the system's folder for caches:
    `XDG_CACHE_HOME` or `~/.cache`, and `~/Library/Caches` in macOS.
    Source: https://specifications.freedesktop.org/basedir-spec/latest, which ignores relative paths.
    """
    if text := os.environ.get(VARIABLE):
        return written_path(text).absolute()
    above = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not above.is_absolute():
        above = written_path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return above / "dreamkit"
