"""The data set `obelics`: documents of text and images in the columns of OBELICS (arXiv 2306.16527)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dreamkit import (
    ConfigError,
    Dataset,
    Document,
    DocumentError,
    Image,
    StorageError,
    Text,
    Url,
    count,
    describe_value,
    printable,
)
from dreamkit_data.example_images import COLOURS, coloured_png
from dreamkit_data.parquet_rows import ParquetRows
from dreamkit_data.patterns import matching_files
from dreamkit_data.row_groups import MEMORY
from dreamkit_data.rows import Row
from dreamkit_data.stored_images import image_paths, is_address, stored_picture, stored_value

IMAGES, TEXTS = "images", "texts"
FIRST: Final = 64  # documents, of which the missing images are counted
BREAK: Final = "\n\n"  # between paragraphs in the texts of the release


@dataclass(frozen=True)
class ObelicsConfig:
    """The recipe section of `obelics`.

    Attributes:
        path: Parquet files: a file, a folder, a pattern such as `/data/obelics/*.parquet`, or a list of these; or
            URLs of objects in buckets.
        draw: train the model to draw the images, which it then reads back; otherwise it only reads them.
        images: folder of the images, which no path may leave; None is the folder of the file, and paths may leave it.
        min_images: a document with fewer stored images is a bad sample; with 0, its texts alone are a document.
        max_images: later images of a document are left out; None: all stay.
        memory: MiB of decoded rows of Parquet that each process keeps.
        index: folder of the index; None is the user's cache folder.
    """

    path: Path | Url | list[Path | Url]
    draw: bool = True
    images: Path | Url | None = None
    min_images: int = 0
    max_images: int | None = None
    memory: int = MEMORY
    index: Path | None = None

    def __post_init__(self) -> None:
        problems = {}
        if self.min_images < 0:
            problems["min_images"] = f"expected at least 0, got {self.min_images}"
        if self.max_images is not None and self.max_images < max(self.min_images, 1):
            problems["max_images"] = f"expected at least 1 and min_images, got {self.max_images}"
        if self.memory < 1:
            problems["memory"] = f"expected at least 1 MiB, got {self.memory}"
        if problems:
            raise ConfigError(problems)


class Place(NamedTuple):
    """A place of a document: a text, or an image that `stored_picture` reads, or neither for one without a copy."""

    number: int
    text: str | None
    image: Any


class Obelics(Dataset):
    """A data set with one document per row, in the order of the release.

    `images` and `texts` are lists of one length; each place has an image or a text, and null in the other. An image
    is its bytes, its path, or a struct of both. A place with an address or with null in both lists is that of an image
    without a stored copy: it is left out, and the texts around it are joined.
    """

    Config = ObelicsConfig
    is_thread_safe = True

    def __init__(self, config: ObelicsConfig) -> None:
        self.config = config
        files = matching_files(config.path, (".parquet",))
        self.rows = ParquetRows(files, {IMAGES: "images", TEXTS: "texts"}, config.index, config.memory)
        image_paths(files[0], config.images)
        self.notes = [*self.rows.notes, *self._missing_notes()]

    @classmethod
    def tiny_config(cls, folder: Path) -> ObelicsConfig:
        columns = {
            IMAGES: [[None, coloured_png(colour), None] for colour in COLOURS],
            TEXTS: [[f"Here is {colour}.", None, "There is more."] for colour in COLOURS],
        }
        pq.write_table(pa.table(columns), folder / "pages.parquet", row_group_size=2)
        return ObelicsConfig(folder)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Document:
        self.check_index(index)
        row = self.rows[index]
        places = read_places(row)
        stored = [place.number for place in places if place.image is not None][: self.config.max_images]
        if len(stored) < self.config.min_images:
            missing = sum(place.image is None and place.text is None for place in places)
            raise DocumentError(
                f"{row.where}: expected at least {count(self.config.min_images, 'stored image')}, got {len(stored)}; "
                f"{count(missing, 'image')} without a stored copy"
            )
        segments: list[Text | Image] = []
        paragraphs: list[str] = []
        for place in places:
            if place.text is not None:
                paragraphs.append(place.text)
            elif place.number in stored:
                segments += _text(paragraphs)
                paragraphs = []
                where = f"{row.where}: {IMAGES}[{place.number}]"
                picture = stored_picture(place.image, where, row.table, self.config.images)
                segments.append(Image(picture, draw=self.config.draw))
        segments += _text(paragraphs)
        if not segments:
            raise DocumentError(f"{row.where}: expected a text or a stored image, got none")
        return Document(tuple(segments), name=row.where)

    def fingerprint(self) -> dict[str, str]:
        return self.rows.fingerprint()

    def _missing_notes(self) -> list[str]:
        """Return a line about the images without a stored copy in the first documents, if there are any.

        Raises:
            DocumentError: these documents have images, and none of them is stored.
        """
        stored = missing = 0
        documents = min(FIRST, len(self))
        for index in range(documents):
            try:
                images = [place.image for place in read_places(self.rows[index]) if place.text is None]
            except DocumentError as error:
                if isinstance(error, StorageError):
                    raise
                continue  # a bad sample
            stored += sum(image is not None for image in images)
            missing += sum(image is None for image in images)
        where = printable(self.rows.files[0])
        if missing and not stored:
            raise DocumentError(
                f"{where}: expected bytes or paths of images, got none in {count(documents, 'document')} with "
                f"{count(missing, 'image')}; download the images, and write them in place of their addresses"
            )
        if not missing:
            return []
        total = stored + missing
        return [
            f"{where}: left out: {missing:,} of {count(f'{total:,}', 'image')} in the first "
            f"{count(documents, 'document')}, without a stored copy"
        ]


def read_places(row: Row) -> list[Place]:
    """Return the places of a row, in order. Blank texts without an image are left out.

    Raises:
        DocumentError: no lists, lists of two lengths, or a place with both a text and an image.
    """
    images, texts = row.values[IMAGES], row.values[TEXTS]
    for name, value in ((IMAGES, images), (TEXTS, texts)):
        if not isinstance(value, list):
            raise DocumentError(f"{row.where}: {name}: expected a list, got {describe_value(value)}")
    if len(images) != len(texts):
        raise DocumentError(
            f"{row.where}: expected lists of one length, got {count(len(images), 'image')} and "
            f"{count(len(texts), 'text')}; each place has an image or a text, and null in the other list"
        )
    places = []
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        image = stored_value(image)
        words = (text or "").strip()
        if words and image is not None:
            raise DocumentError(f"{row.where}: place {number}: expected an image or a text, got both")
        if words or text is None or image is not None:
            places.append(Place(number, words or None, None if is_address(image) else image))
    return places


def _text(paragraphs: list[str]) -> list[Text]:
    return [Text(BREAK.join(paragraphs))] if paragraphs else []
