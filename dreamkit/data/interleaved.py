"""Documents in which text and images alternate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamkit.data.dataset import Dataset
from dreamkit.data.records import Records, open_picture, wrong_text, wrong_texts
from dreamkit.document import DRAW_SLOT, READ_SLOT, Document


@dataclass(frozen=True)
class InterleavedConfig:
    """`path`: JSON Lines, each `{"text": "... <image> ...", "images": [paths]}`, an image path for each `<image>`.

    With `draw` the model learns to draw the images where they stand, and reads them back; without, it only reads them.
    `<draw>` in a text asks for drawing either way. Image paths are relative to `images`, or to the folder of the file.
    """

    path: Path
    draw: bool = True
    images: Path | None = None


class Interleaved(Dataset):
    """One document a line."""

    Config = InterleavedConfig

    def __init__(self, config: InterleavedConfig) -> None:
        self.config = config
        self.folder = config.images or config.path.parent
        self.records = Records(config.path, _wrong)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Document:
        where, record = self.records[index]
        text = record["text"].replace(READ_SLOT, DRAW_SLOT) if self.config.draw else record["text"]
        pictures = [open_picture(self.folder / path, where) for path in record.get("images", [])]
        return Document.interleave(text, pictures, name=where)


def _wrong(record: Mapping[str, Any]) -> str | None:
    wrong = wrong_text(record, "text") or wrong_texts(record, "images")
    if wrong is None:
        slots = sum(record["text"].count(slot) for slot in (READ_SLOT, DRAW_SLOT))
        images = len(record.get("images", []))
        if slots != images:
            wrong = f"{images} images for {slots} slots ({READ_SLOT} or {DRAW_SLOT}); give one image for each slot"
    return wrong
