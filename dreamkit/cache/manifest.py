"""The manifest of a cache: its tables, what made them, and what its files are. Loads no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypedDict, get_args

from dreamkit.cache.identity import Maker
from dreamkit.errors import CacheError, DreamkitError, did_you_mean
from dreamkit.storage.folder_manifest import FolderManifest

MAKE: Final = "dreamkit cache RECIPE --out"

Table: TypeAlias = Literal["features", "latents"]
TABLES: Final[tuple[Table, ...]] = get_args(Table)
MADE_BY: Final[Mapping[str, str]] = {"features": "vision_encoder", "latents": "image_decoder"}
HOLDS: Final[Mapping[str, tuple[str, ...]]] = {"features": ("features",), "latents": ("mean",)}  # at least
SPARED: Final = {"features": "vision_encoder does not run", "latents": "image_decoder does not encode"}


# as safetensors has them
DTYPES: Final = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2"),
)


class TensorRecord(TypedDict):
    """One row of a tensor."""

    dtype: str
    shape: list[int]


class TableRecord(TypedDict):
    """`pictures` are those of the data; one row more is that of the blank picture, which completes batches."""

    maker: Maker
    pictures: int
    shards: int
    tensors: dict[str, TensorRecord]


class DataRecord(TypedDict):
    """A data set as the recipe names it, and how many documents it had."""

    name: str
    settings: dict[str, Any]
    documents: int


@dataclass(frozen=True)
class CacheManifest(FolderManifest):
    """What `cache.json` says. `tables` are by their name in `TABLES`."""

    KIND: ClassVar[str] = "cache"
    FILE: ClassVar[str] = "cache.json"
    FORMAT: ClassVar[int] = 1
    ERROR: ClassVar[type[DreamkitError]] = CacheError

    data: list[DataRecord]
    tables: dict[str, TableRecord]

    @classmethod
    def find_hint(cls, folder: Path) -> str:
        return f"name one, or make it in a new folder: {MAKE} FOLDER" if folder.exists() else remedy(folder)

    @classmethod
    def mend_hint(cls, folder: Path) -> str:
        return remedy(folder)

    def told(self, folder: Path) -> str:
        """What training reads from `folder`, in a line."""
        tables = [
            f"{table} (pictures: {record['pictures']:,}, {SPARED[table]})"
            for table, record in self.tables.items()
        ]
        return f"read from {folder}: {', '.join(tables)}"

    def size(self, table: str) -> int:
        """The bytes of a table's files."""
        shards = range(self.tables[table]["shards"])
        return sum(self.files[shard_name(table, number)]["size"] for number in shards)

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if not self.tables:
            yield "tables: none found"
        for table, record in self.tables.items():
            if table not in TABLES:
                yield f"tables: '{table}' found, but a table is one of {', '.join(TABLES)}"
                continue
            found = {name for name in self.files if name.startswith(f"{table}-")}
            if found != {shard_name(table, number) for number in range(len(found))} or not found:
                yield f"files: those of '{table}' are not numbered from 0 on: {', '.join(sorted(found)) or 'none'}"
            if len(found) != record["shards"]:
                yield f"files: {len(found)} of '{table}' found, but {record['shards']} shards"
            if record["pictures"] < 1:
                yield f"tables.{table}.pictures: {record['pictures']} found, but there is one at least"
            if absent := [name for name in HOLDS[table] if name not in record["tensors"]]:
                yield f"tables.{table}.tensors: missing: {', '.join(absent)}"
            for name, tensor in record["tensors"].items():
                at = f"tables.{table}.tensors.{name}"
                if tensor["dtype"] not in DTYPES:
                    yield f"{at}.dtype: '{tensor['dtype']}' found; {did_you_mean(tensor['dtype'], DTYPES)}"
                if any(size < 0 for size in tensor["shape"]):
                    yield f"{at}.shape: {tensor['shape']} found, but no size is below 0"


def shard_name(table: str, number: int) -> str:
    """The name of a file of rows."""
    return f"{table}-{number:05}.safetensors"


def remedy(folder: Path) -> str:
    """What to do about a cache that does not fit."""
    replace = " --overwrite" if (folder / CacheManifest.FILE).is_file() else ""
    return f"make it anew from the recipe that is trained: {MAKE} {shlex.quote(str(folder))}{replace}"


def without(table: str) -> str:
    """What to do about a table of what changes."""
    others = [other for other in TABLES if other != table]
    return f"make a cache without {table} by --only {' --only '.join(others)}"
