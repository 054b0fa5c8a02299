"""A data set of images with captions, to draw or to read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreamkit.data.dataset import Dataset
from dreamkit.data.examples import COLOURS, write_images, write_lines
from dreamkit.data.fingerprint import hash_of
from dreamkit.data.image_files import open_picture
from dreamkit.data.image_folder import ImageFolder
from dreamkit.data.record_keys import RecordKeys
from dreamkit.data.records import ImagePaths, Records, check_settings, string_problem, text_problem
from dreamkit.data.text_files import read_text
from dreamkit.data.unchanged import FileStatus
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError, printable


@dataclass(frozen=True)
class PairsConfig:
    """The recipe section of `pairs`.

    Attributes:
        path: JSON Lines file with an image path and a caption in each line, or a folder of images. In a folder, each
            image has its caption in a `.txt` file of the same name.
        direction: `draw` the image from its caption, or `read` the image and write the caption.
        images: folder of the images, which no path may leave; None is the folder of the file, and paths may leave it.
        image: key of the image path in a line.
        caption: key of the caption in a line.
        index: folder of the index of a file of records; None is the user's cache folder.
    """

    path: Path
    direction: Literal["draw", "read"] = "draw"
    images: Path | None = None
    image: str = "image"
    caption: str = "caption"
    index: Path | None = None


class Pairs(Dataset):
    """A data set with one document per pair."""

    Config = PairsConfig
    is_thread_safe = True

    def __init__(self, config: PairsConfig) -> None:
        self.config = config
        self.pairs: Records | list[Path]
        if os.path.isdir(config.path):
            if config.images is not None:
                raise DocumentError(
                    f"{printable(config.path)}: 'images' is set, but this folder itself has the images; remove 'images'"
                )
            if config.index is not None:
                raise DocumentError(
                    f"{printable(config.path)}: 'index' is set, but a folder of images has none; remove 'index'"
                )
            self.folder = ImageFolder(config.path)
            self.pairs, self.notes = self.folder.images, self.folder.notes
            return
        self.images = ImagePaths(config.path, config.images)
        self.keys = RecordKeys((config.image, config.caption))
        self.pairs = Records(
            config.path,
            self._problem,
            notes=self.keys.notes,
            settings=check_settings(config, "direction"),
            index=config.index,
        )
        self.notes = self.pairs.notes

    @classmethod
    def tiny_config(cls, folder: Path) -> PairsConfig:
        pairs = zip(write_images(folder), COLOURS, strict=True)
        records = [{"image": image, "caption": f"a {colour} square"} for image, colour in pairs]
        return PairsConfig(write_lines(folder / "pairs.jsonl", records))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Document:
        self.check_index(index)
        if isinstance(self.pairs, Records):
            where, record = self.pairs[index]
            caption = record[self.config.caption]
            picture = self.images.open(record[self.config.image], where)
        else:
            path, (image_status, caption_status) = self.pairs[index], self.folder.status(index)
            where, caption = printable(path), _caption(path.with_suffix(".txt"), caption_status)
            picture = open_picture(path, where, image_status)
        text = Text(caption.strip())
        if self.config.direction == "draw":
            # Nothing follows the image, so reading it back would train nothing.
            return Document((text, Image(picture, draw=True, read=False)), name=where)
        return Document((Image(picture), text), name=where)

    def fingerprint(self) -> dict[str, str]:
        if isinstance(self.pairs, Records):
            return {**super().fingerprint(), "records": self.pairs.sha256}
        return {
            **super().fingerprint(),
            "names and sizes of images and captions": self._listing_hash(self.folder),
        }

    def _listing_hash(self, folder: ImageFolder) -> str:
        """Return a hash of names and sizes: images are many and large, so `sampled` reads some."""
        statuses = map(folder.status, range(len(folder.images)))
        return hash_of(
            b"%s %d %d" % (os.fsencode(path.relative_to(self.config.path)), image.size, caption.size)
            for path, (image, caption) in zip(folder.images, statuses, strict=True)
        )

    def _problem(self, record: Mapping[str, Any]) -> str | None:
        image, caption = self.config.image, self.config.caption
        problem = self.keys.problem(record) or string_problem(record, image) or text_problem(record, caption)
        if problem is None and (path_problem := self.images.problem(record[image])):
            return f"{image}: {path_problem}"
        if problem is None:
            self.keys.count_placeholders(record[caption])
        return problem


def _caption(path: Path, status: FileStatus) -> str:
    """Read the caption in a file of this status."""
    caption = read_text(path, status).strip()
    if not caption:
        raise DocumentError(f"{printable(path)}: empty caption; write one or remove the pair")
    return caption
