"""A data set of documents in which text and images alternate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamkit.data.dataset import Dataset
from dreamkit.data.document_records import DocumentRecords
from dreamkit.data.examples import write_images, write_lines
from dreamkit.data.record_keys import RecordKeys
from dreamkit.data.records import ImagePaths, Records, check_settings, paths_in, text_problem
from dreamkit.document import DRAW_SLOT, READ_SLOT, Document

SLOTS = (READ_SLOT, DRAW_SLOT)


@dataclass(frozen=True)
class InterleavedConfig:
    """The recipe section of `interleaved`.

    Attributes:
        path: JSON Lines file. Each line is `{"text": "... <image> ...", "images": [paths]}`, with a path or data URL
            for each `<image>`; or it has `content` or `messages`, as `dreamkit data preview --jsonl` writes them.
        draw: train the model to draw the images, which it then reads back. Otherwise it reads them, and draws only the
            images of `<draw>` in a text. Images of turns of the user, and those with `draw` of their own, ignore it.
        images: folder of the images, which no path may leave; None is the folder of the file, and paths may leave it.
        index: folder of the index of a file of records; None is the user's cache folder.
    """

    path: Path
    draw: bool = True
    images: Path | None = None
    index: Path | None = None


class Interleaved(Dataset):
    """A data set with one document per line."""

    Config = InterleavedConfig
    is_thread_safe = True

    def __init__(self, config: InterleavedConfig) -> None:
        self.config = config
        self.images = ImagePaths(config.path, config.images)
        self.forms = DocumentRecords(self.images, draw=config.draw)
        self.keys = RecordKeys(("text", "images"), slots=SLOTS)
        self.records = Records(
            config.path,
            self._problem,
            notes=lambda: [*self.keys.notes(), *self.forms.notes()],
            settings=check_settings(config),
            index=config.index,
        )
        self.notes = self.records.notes

    @classmethod
    def tiny_config(cls, folder: Path) -> InterleavedConfig:
        red, green, blue = write_images(folder)
        records: list[dict[str, Any]] = [
            {"text": "A red square: <image> and a green one: <draw>", "images": [red, green]},
            {"text": "<image> is blue.", "images": [blue]},
            {"text": "No square at all."},
        ]
        return InterleavedConfig(write_lines(folder / "documents.jsonl", records))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Document:
        self.check_index(index)
        where, record = self.records[index]
        if self.forms.has_form(record):
            return self.forms.document(record, where)
        text = record["text"].replace(READ_SLOT, DRAW_SLOT) if self.config.draw else record["text"]
        pictures = [self.images.open(path, where) for path in paths_in(record, "images")]
        return Document.interleave(text, pictures, name=where)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "records": self.records.sha256}

    def _problem(self, record: Mapping[str, Any]) -> str | None:
        if self.forms.has_form(record):
            return self.forms.problem(record)
        problem = (
            self.keys.problem(record)
            or text_problem(record, "text")
            or self.images.list_problem(record, "images")
        )
        if problem is None:
            slots = sum(record["text"].count(slot) for slot in SLOTS)
            images = len(paths_in(record, "images"))
            if slots != images:
                return f"expected one image for each {READ_SLOT} and {DRAW_SLOT}, got {images} for {slots}"
            self.keys.count_placeholders(record["text"])
        return problem
