"""Images with captions, to learn drawing or reading from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image as PIL

from dreamkit.data.dataset import Dataset
from dreamkit.data.records import Records, open_picture, wrong_text
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError


@dataclass(frozen=True)
class PairsConfig:
    """`path`: JSON Lines with an image path and a caption a line, or a folder of images, each beside a `.txt` file.

    `direction`: `draw` the image from its caption, or `read` the image and write the caption. Image paths are relative
    to `images`, or else to the folder of the file. `image` and `caption` are the keys of a line.
    """

    path: Path
    direction: Literal["draw", "read"] = "draw"
    images: Path | None = None
    image: str = "image"
    caption: str = "caption"


class Pairs(Dataset):
    """One document a pair."""

    Config = PairsConfig

    def __init__(self, config: PairsConfig) -> None:
        self.config = config
        self.folder = config.images or config.path.parent
        self.pairs = _folder(config.path) if config.path.is_dir() else Records(config.path, self._wrong)

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
            # Nothing comes after the image, so reading it back would teach nothing.
            return Document((text, Image(picture, draw=True, read=False)), name=where)
        return Document((Image(picture), text), name=where)

    def _wrong(self, record: Mapping[str, Any]) -> str | None:
        return wrong_text(record, self.config.image) or wrong_text(record, self.config.caption)


def _folder(folder: Path) -> list[Path]:
    """The images of a folder and of those below it, each of which must have a caption beside it, and the reverse."""
    suffixes = PIL.registered_extensions()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in suffixes]
    captions = {path for path in files if path.suffix == ".txt"}
    stems = [path.with_suffix("") for path in images]
    for path, stem in zip(images, stems, strict=True):
        if path.with_suffix(".txt") not in captions:
            raise DocumentError(
                f"{path}: no caption {stem.name}.txt is beside it; write one, or remove the image"
            )
    lonely = sorted(captions - {stem.with_suffix(".txt") for stem in stems})
    if lonely:
        raise DocumentError(
            f"{lonely[0]}: there is no image of this name beside it; add it, or remove the caption"
        )
    if not images:
        raise DocumentError(f"{folder}: holds no images; correct the path of the data set")
    return images


def _caption(path: Path) -> str:
    try:
        caption = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{path}: cannot be read: {error}") from error
    if not caption:
        raise DocumentError(f"{path}: the caption is empty; write one, or remove the pair")
    return caption
