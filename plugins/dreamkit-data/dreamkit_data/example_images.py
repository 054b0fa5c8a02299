"""Images and tars of the small files with which the contract kit tests the readers of this package."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SIDE: Final = 12  # pixels
COLOURS: Final = ("red", "green", "blue")


def coloured_png(colour: str) -> bytes:
    """Return a PNG of one colour."""
    from PIL import Image as PIL

    file = io.BytesIO()
    PIL.new("RGB", (SIDE, SIDE), colour).save(file, "PNG")
    return file.getvalue()


def write_small_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of members, each a name and its content."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
