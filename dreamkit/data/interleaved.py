"""A data set of documents in which text and images alternate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamkit.data.dataset import Dataset
from dreamkit.data.records import Records, open_picture, paths_problem, text_problem
from dreamkit.document import DRAW_SLOT, READ_SLOT, Document


@dataclass(frozen=True)
class InterleavedConfig:
    """The recipe section of `interleaved`.

    Attributes:
        path: JSON Lines file. Each line is `{"text": "... <image> ...", "images": [paths]}`, with a path for each
            `<image>`.
        draw: train the model to draw the images, which it then reads back. Otherwise it reads them, and draws only the
            images of `<draw>` in a text.
        images: folder of relative image paths; None is the folder of the file.
    """

    path: Path
    draw: bool = True
    images: Path | None = None


class Interleaved(Dataset):
    """A data set with one document per line."""

    Config = InterleavedConfig

    def __init__(self, config: InterleavedConfig) -> None:
        self.config = config
        self.folder = config.images or config.path.parent
        self.records = Records(config.path, _problem)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Document:
        where, record = self.records[index]
        text = record["text"].replace(READ_SLOT, DRAW_SLOT) if self.config.draw else record["text"]
        pictures = [open_picture(self.folder / path, where) for path in record.get("images", [])]
        return Document.interleave(text, pictures, name=where)


def _problem(record: Mapping[str, Any]) -> str | None:
    problem = text_problem(record, "text") or paths_problem(record, "images")
    if problem is None:
        slots = sum(record["text"].count(slot) for slot in (READ_SLOT, DRAW_SLOT))
        images = len(record.get("images", []))
        if slots != images:
            return f"expected one image for each {READ_SLOT} and {DRAW_SLOT}, got {images} for {slots}"
    return problem
