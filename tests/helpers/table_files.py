"""Tables of digits in the formats that people have: Parquet as `datasets` writes it, OBELICS, COCO's JSON."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dreamkit_digits import digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the feature Image of `datasets`


@cache
def png(index: int) -> bytes:
    """Return the PNG of digit `index`."""
    file = io.BytesIO()
    digits.load("train").image(index).save(file, "PNG")
    return file.getvalue()


def name(index: int) -> str:
    """Return the name of digit `index`."""
    return NAMES[digits.load("train").labels[index]]


def write_parquet(path: Path, columns: dict[str, Any], rows: int = 3, **settings: Any) -> Path:
    """Write a Parquet file with `rows` rows in each row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows, **settings)
    return path


def write_pairs(path: Path, indices: Sequence[int], rows: int = 3, **more: Any) -> Path:
    """Write digits with captions, as `datasets` writes them: a struct of bytes and path."""
    images = [{"bytes": png(index), "path": f"{index}.png"} for index in indices]
    columns = {"image": pa.array(images, IMAGE), "caption": [f"a {name(index)}" for index in indices]}
    return write_parquet(path, columns | more, rows)
