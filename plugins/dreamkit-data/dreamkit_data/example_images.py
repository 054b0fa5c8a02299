"""Images of the small files with which the contract kit tests the readers of this package."""

from __future__ import annotations

import io
from typing import Final

SIDE: Final = 12  # pixels
COLOURS: Final = ("red", "green", "blue")


def coloured_png(colour: str) -> bytes:
    """Return a PNG of one colour."""
    from PIL import Image as PIL

    file = io.BytesIO()
    PIL.new("RGB", (SIDE, SIDE), colour).save(file, "PNG")
    return file.getvalue()
