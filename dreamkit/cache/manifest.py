"""The manifest of a cache, `cache.json`. It records the tables, the data sets and the files. Loads no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypedDict, get_args

from dreamkit.errors import CacheError, DreamkitError, did_you_mean, excerpt
from dreamkit.storage.folder_manifest import FolderManifest

COMMAND_START: Final = "dreamkit cache RECIPE --out"

Table: TypeAlias = Literal["features", "latents"]
TABLES: Final[tuple[Table, ...]] = get_args(Table)
PART_OF: Final[Mapping[str, str]] = {"features": "vision_encoder", "latents": "image_decoder"}
# A row of latents also has "std", unless the posterior has no standard deviation.
REQUIRED_TENSORS: Final[Mapping[str, str]] = {"features": "features", "latents": "mean"}
SKIPPED: Final = {"features": "vision_encoder does not run", "latents": "image_decoder does not encode"}
# torch's names of the dtypes that safetensors stores
DTYPES: Final = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2"),
)


class Identity(TypedDict):
    """The facts that determine the rows of a table. A table fits a model with the same identity.

    `component`: name, distribution and version of the part. `precision`: `train.precision`.
    `settings`: the fields of the part's recipe section by dotted names, without `pretrained` and the loss-only fields.
    `source_files`: sha256 of each config file of `pretrained`; a file that one side lacks is not compared.
    `weights`: sha256 of the module that computes the table: the vision encoder, or the decoder's `posterior_module`.
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
    """A table of `images` + 1 rows; the additional row is for a batch without an image of this kind."""

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
    OLDEST: ClassVar[int] = 2  # format 1 has hashes of other weights, which cannot be compared
    ERROR: ClassVar[type[DreamkitError]] = CacheError

    data: list[DataRecord]
    tables: dict[str, TableRecord]

    @classmethod
    def find_hint(cls, folder: Path) -> str:
        if folder.exists():
            return f"name the folder of a cache, or create one: {COMMAND_START} FOLDER"
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

    def table_bytes(self, table: str) -> int:
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
            elif len(files) != record["shards"]:
                yield f"files: expected {record['shards']} of '{table}', got {len(files)}"
            if record["images"] < 1:
                yield f"tables.{table}.images: expected at least 1, got {record['images']}"
            if REQUIRED_TENSORS[table] not in record["tensors"]:
                yield f"tables.{table}.tensors: '{REQUIRED_TENSORS[table]}' is missing"
            for name, tensor in record["tensors"].items():
                key = f"tables.{table}.tensors.{name}"
                dtype, shape = excerpt(tensor["dtype"]), excerpt(str(tensor["shape"]))
                if tensor["dtype"] not in DTYPES:
                    hint = did_you_mean(dtype, DTYPES)
                    yield f"{key}.dtype: expected a dtype of safetensors, got '{dtype}'; {hint}"
                if any(size < 0 for size in tensor["shape"]):
                    yield f"{key}.shape: expected sizes of at least 0, got {shape}"


def shard_name(table: str, number: int) -> str:
    """Return the file name of a shard."""
    return f"{table}-{number:05}.safetensors"


def recreate_hint(folder: Path) -> str:
    """Return the end of an error message: the command that creates the cache in `folder`, or recreates it."""
    verb, option = ("recreate", " --overwrite") if (folder / CacheManifest.FILE).is_file() else ("create", "")
    return f"{verb} it from a recipe with all of its data: {COMMAND_START} {shlex.quote(str(folder))}{option}"


def exclude_table_hint(table: str) -> str:
    """Return the end of an error message: the command that writes a cache without `table`."""
    others = [other for other in TABLES if other != table]
    return f"create a cache without {table}: {COMMAND_START} FOLDER --only {' --only '.join(others)}"
