"""The data set `table`: pairs of an image and a caption in the rows of Parquet files or text tables."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from dreamkit import (
    ConfigError,
    Dataset,
    Document,
    DocumentError,
    Location,
    Url,
    describe_value,
    printable,
    read_error,
)
from dreamkit_data.bucket_reads import open_object
from dreamkit_data.buckets import is_remote
from dreamkit_data.captions import Direction, choose_caption, pair, weight_problems
from dreamkit_data.columns import Kind
from dreamkit_data.example_images import COLOURS, coloured_png
from dreamkit_data.parquet_rows import ParquetRows
from dreamkit_data.patterns import matching_files
from dreamkit_data.row_groups import MEMORY
from dreamkit_data.stored_images import image_paths, stored_picture, stored_value
from dreamkit_data.text_rows import Layout, TextRows

SUFFIXES: Final = (
    ".parquet",
    *(f".{table}{packed}" for table in ("tsv", "csv") for packed in ("", ".gz", ".zst")),
)
MAGIC: Final = b"PAR1"


@dataclass(frozen=True)
class TableConfig:
    """The recipe section of `table`.

    Attributes:
        path: Parquet files, or text tables with tabs or commas between the values, which may be packed (`.gz` or
            `.zst`): a file, a folder, a pattern such as `/data/train-*.parquet` or
            `/data/{00000..01000}.parquet`, or a list of these; or URLs of objects in buckets.
        direction: `draw` the image from its caption, or `read` the image and write the caption.
        image: column of the image: its bytes, its path, or the struct of both that `datasets` writes.
        caption: column of the caption: a text, or a list of texts in Parquet. A section of several with their weights
            has one chosen at random for each use of a row, among those that the row has: `{caption: 1, alt: 2}`.
        images: folder of the images, which no path may leave; None is the folder of the file, and paths may leave it.
        base64: texts in the column of the image are images in base64, not paths.
        header: the first line of a text table has the names of its columns; otherwise `image` and `caption` are numbers
            from 0.
        quotes: values of a text table may be in quotes, which do not belong to them; None: in tables with commas.
        memory: MiB of decoded rows of Parquet that each process keeps; None: 256.
        index: folder of the index; None is the user's cache folder.
    """

    path: Path | Url | list[Path | Url]
    direction: Direction = "draw"
    image: str | int = "image"
    caption: str | int | dict[str, float] = "caption"
    images: Path | Url | None = None
    base64: bool = False
    header: bool = True
    quotes: bool | None = None
    memory: int | None = None
    index: Path | None = None

    def __post_init__(self) -> None:
        problems = weight_problems(self.captions)
        if str(self.image) in self.captions:
            problems["caption"] = (
                f"expected another column than that of the image, got {describe_value(self.image)}"
            )
        if self.memory is not None and self.memory < 1:
            problems["memory"] = f"expected at least 1 MiB, got {self.memory}"
        if problems:
            raise ConfigError(problems)

    @property
    def captions(self) -> dict[str, float]:
        """The weights of the columns of captions."""
        return dict(self.caption) if isinstance(self.caption, dict) else {str(self.caption): 1.0}


class Table(Dataset):
    """A data set with one document per row."""

    Config = TableConfig
    is_thread_safe = True

    def __init__(self, config: TableConfig) -> None:
        self.config = config
        self.image, self.captions = str(config.image), config.captions
        files = matching_files(config.path, SUFFIXES)
        self.rows: ParquetRows | TextRows
        if _is_parquet(files[0]):
            kinds: dict[str, Kind] = {self.image: "image", **dict.fromkeys(self.captions, "caption")}
            self.rows = ParquetRows(files, kinds, config.index, config.memory or MEMORY)
            if not config.header or config.quotes is not None:
                key = "header" if config.quotes is None else "quotes"
                raise DocumentError(
                    f"{printable(files[0])}: '{key}' is for text tables, got Parquet; remove it"
                )
            if config.images is not None and self.rows.has_bytes_alone(self.image):
                raise DocumentError(
                    f"{printable(files[0])}: 'images' is set, but the column '{printable(self.image)}' has the images; "
                    "remove 'images'"
                )
        else:
            if config.memory is not None:
                raise DocumentError(
                    f"{printable(files[0])}: 'memory' is for Parquet, got a text table; remove it"
                )
            columns = (self.image, *self.captions)
            self.rows = TextRows(files, Layout(columns, config.header, config.quotes), config.index)
        self.notes = self.rows.notes
        image_paths(files[0], config.images)

    @classmethod
    def tiny_config(cls, folder: Path) -> TableConfig:
        columns = {
            "image": [{"bytes": coloured_png(colour), "path": f"{colour}.png"} for colour in COLOURS],
            "caption": [f"a {colour} square" for colour in COLOURS],
            "alt": [[colour, "square"] for colour in COLOURS],
        }
        pq.write_table(pa.table(columns), folder / "pairs.parquet", row_group_size=2)
        return TableConfig(folder, caption={"caption": 2, "alt": 1})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Document:
        return self._document(index, None)

    def sample(self, index: int, choices: random.Random) -> Document:
        """Return document `index` with one of its captions, chosen by weight."""
        return self._document(index, choices)

    def fingerprint(self) -> dict[str, str]:
        if isinstance(self.rows, TextRows):
            return super().fingerprint() | self.rows.fingerprint()
        return self.rows.fingerprint()

    def _document(self, index: int, choices: random.Random | None) -> Document:
        self.check_index(index)
        where, table, values = self.rows[index]
        caption = choose_caption(values, self.captions, where, choices)
        picture = stored_picture(
            stored_value(values[self.image]),
            f"{where}: {printable(self.image)}",
            table,
            self.config.images,
            base64=self.config.base64,
        )
        return pair(picture, caption, self.config.direction, where)


def _is_parquet(path: Location) -> bool:
    """Return True if a file is Parquet, by its first bytes. Others of the data set must have the same format."""
    if is_remote(path):
        with open_object(path, block=len(MAGIC)) as file:
            return file.read(len(MAGIC)) == MAGIC
    if not os.path.isfile(path):  # to open a named pipe may wait forever
        raise DocumentError(f"{printable(path)}: expected a regular file")
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise read_error(f"{printable(path)}: cannot read the file: {error.strerror}", error) from error
