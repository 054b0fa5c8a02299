"""The manifest of a cache: its tables, the identity and shape of each, its data and its files. Loads no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypedDict, get_args

from dreamkit.errors import CacheError, DreamkitError, did_you_mean
from dreamkit.storage.folder_manifest import FolderManifest

COMMAND: Final = "dreamkit cache RECIPE --out"

Table: TypeAlias = Literal["features", "latents"]
TABLES: Final[tuple[Table, ...]] = get_args(Table)
PART_OF: Final[Mapping[str, str]] = {"features": "vision_encoder", "latents": "image_decoder"}
REQUIRED_TENSORS: Final[Mapping[str, str]] = {"features": "features", "latents": "mean"}
SKIPPED: Final = {"features": "vision_encoder does not run", "latents": "image_decoder does not encode"}
# by their names in safetensors
DTYPES: Final = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2"),
)


class Identity(TypedDict):
    """The facts that determine the rows of a table: a table belongs to a model with the same identity.

    `component`: name, distribution and version. `precision`: `train.precision`. `settings`: those of the recipe section
    that can change the output, by dotted names; `pretrained` only names the place of weights and config files and is
    left out. `source_files`: sha256 of these config files. `weights`: sha256 of the weights.
    """

    component: str
    precision: str
    settings: dict[str, Any]
    source_files: dict[str, str]
    weights: str


class TensorRecord(TypedDict):
    """The dtype and shape of a tensor in one row."""

    dtype: str
    shape: list[int]


class TableRecord(TypedDict):
    """A table of `images` + 1 rows; the additional row is that of the blank image, which completes batches."""

    identity: Identity
    images: int
    shards: int
    tensors: dict[str, TensorRecord]


class DataRecord(TypedDict):
    """A data set of the recipe: its name, its settings and its number of documents."""

    name: str
    settings: dict[str, Any]
    documents: int


@dataclass(frozen=True)
class CacheManifest(FolderManifest):
    """The content of `cache.json`. `tables` maps names in `TABLES` to records."""

    KIND: ClassVar[str] = "cache"
    FILE: ClassVar[str] = "cache.json"
    FORMAT: ClassVar[int] = 2
    OLDEST: ClassVar[int] = 2  # format 1 hashed other weights, so its tables cannot be compared with a model
    ERROR: ClassVar[type[DreamkitError]] = CacheError

    data: list[DataRecord]
    tables: dict[str, TableRecord]

    @classmethod
    def find_hint(cls, folder: Path) -> str:
        if folder.exists():
            return f"name the folder of a cache, or create one: {COMMAND} FOLDER"
        return recreate_hint(folder)

    @classmethod
    def repair_hint(cls, folder: Path) -> str:
        return recreate_hint(folder)

    def summary(self, folder: Path) -> str:
        """Return a line about the tables in `folder` and the work that they save."""
        tables = [
            f"{table} (images: {record['images']:,}, {SKIPPED[table]})"
            for table, record in self.tables.items()
        ]
        return f"read from {folder}: {', '.join(tables)}"

    def size(self, table: str) -> int:
        """Return the size of a table's files in bytes."""
        shards = range(self.tables[table]["shards"])
        return sum(self.files[shard_name(table, number)]["size"] for number in shards)

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if not self.tables:
            yield "tables: expected at least one, got none"
        for table, record in self.tables.items():
            if table not in TABLES:
                yield f"tables: expected {' or '.join(TABLES)}, got '{table}'"
                continue
            files = {name for name in self.files if name.startswith(f"{table}-")}
            if not files or files != {shard_name(table, number) for number in range(len(files))}:
                yield f"files: expected names of '{table}' numbered from 0, got {', '.join(sorted(files)) or 'none'}"
            if len(files) != record["shards"]:
                yield f"files: expected {record['shards']} of '{table}', got {len(files)}"
            if record["images"] < 1:
                yield f"tables.{table}.images: expected at least 1, got {record['images']}"
            if REQUIRED_TENSORS[table] not in record["tensors"]:
                yield f"tables.{table}.tensors: '{REQUIRED_TENSORS[table]}' is missing"
            for name, tensor in record["tensors"].items():
                key = f"tables.{table}.tensors.{name}"
                if tensor["dtype"] not in DTYPES:
                    hint = did_you_mean(tensor["dtype"], DTYPES)
                    yield f"{key}.dtype: expected a dtype of safetensors, got '{tensor['dtype']}'; {hint}"
                if any(size < 0 for size in tensor["shape"]):
                    yield f"{key}.shape: expected sizes of at least 0, got {tensor['shape']}"


def shard_name(table: str, number: int) -> str:
    """Return the file name of a shard."""
    return f"{table}-{number:05}.safetensors"


def recreate_hint(folder: Path) -> str:
    """Return the command that writes the cache in `folder`, or writes it again: the end of an error message."""
    verb, option = ("recreate", " --overwrite") if (folder / CacheManifest.FILE).is_file() else ("create", "")
    return f"{verb} it from the recipe you are training: {COMMAND} {shlex.quote(str(folder))}{option}"


def exclude_table_hint(table: str) -> str:
    """Return how to write a cache without `table`: the end of an error message."""
    others = [other for other in TABLES if other != table]
    return f"create a cache without {table}: --only {' --only '.join(others)}"
