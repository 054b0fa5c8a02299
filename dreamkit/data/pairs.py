"""A data set of images with captions, to draw or to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image as PIL

from dreamkit.data.dataset import Dataset
from dreamkit.data.records import Records, open_picture, text_problem
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError


@dataclass(frozen=True)
class PairsConfig:
    """The recipe section of `pairs`.

    Attributes:
        path: JSON Lines file with an image path and a caption in each line, or a folder of images. In a folder, each
            image has its caption in a `.txt` file of the same name.
        direction: `draw` the image from its caption, or `read` the image and write the caption.
        images: folder of relative image paths; None is the folder of the file.
        image: key of the image path in a line.
        caption: key of the caption in a line.
    """

    path: Path
    direction: Literal["draw", "read"] = "draw"
    images: Path | None = None
    image: str = "image"
    caption: str = "caption"


class Pairs(Dataset):
    """A data set with one document per pair."""

    Config = PairsConfig

    def __init__(self, config: PairsConfig) -> None:
        self.config = config
        self.folder = config.images or config.path.parent
        self.pairs = _folder(config.path) if config.path.is_dir() else Records(config.path, self._problem)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Document:
        if isinstance(self.pairs, Records):
            where, record = self.pairs[index]
            path, caption = self.folder / record[self.config.image], record[self.config.caption]
        else:
            path = self.pairs[index]
            where, caption = str(path), _caption(path.with_suffix(".txt"))
        picture, text = open_picture(path, where), Text(caption.strip())
        if self.config.direction == "draw":
            # Nothing follows the image, so reading it back would train nothing.
            return Document((text, Image(picture, draw=True, read=False)), name=where)
        return Document((Image(picture), text), name=where)

    def _problem(self, record: Mapping[str, Any]) -> str | None:
        return text_problem(record, self.config.image) or text_problem(record, self.config.caption)


def _folder(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders.

    Raises:
        DocumentError: no images, an image without a caption, or a caption without an image.
    """
    suffixes = PIL.registered_extensions()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in suffixes]
    captions = {path for path in files if path.suffix == ".txt"}
    stems = [path.with_suffix("") for path in images]
    for path, stem in zip(images, stems, strict=True):
        if path.with_suffix(".txt") not in captions:
            raise DocumentError(
                f"{path}: missing caption {stem.name}.txt in the same folder: write it or remove the image"
            )
    without_image = sorted(captions - {stem.with_suffix(".txt") for stem in stems})
    if without_image:
        raise DocumentError(
            f"{without_image[0]}: missing image of this name in the same folder: add it or remove the caption"
        )
    if not images:
        raise DocumentError(f"{folder}: no images; correct the path of the data set")
    return images


def _caption(path: Path) -> str:
    """Read the caption in a file."""
    try:
        caption = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{path}: cannot read the caption: {error}") from error
    if not caption:
        raise DocumentError(f"{path}: empty caption; write one or remove the pair")
    return caption
