"""Small files of the core's data formats: the examples that the contract kit tests the readers with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image as PIL

SIDE = 12  # pixels
COLOURS = ("red", "green", "blue")


def write_images(folder: Path) -> list[str]:
    """Write an image of each of `COLOURS` into the new folder `images`; return their paths in `folder`."""
    (folder / "images").mkdir()
    names = [f"images/{colour}.png" for colour in COLOURS]
    for name, colour in zip(names, COLOURS, strict=True):
        PIL.new("RGB", (SIDE, SIDE), colour).save(folder / name)
    return names


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write records as JSON Lines; return the path."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path
