"""The manifest of a cache: its tables, what made them, and what its files are. Loads no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args, get_type_hints

from dreamkit.cache.identity import Maker
from dreamkit.checkpoints.manifest import misfits, read_json
from dreamkit.errors import CacheError, did_you_mean
from dreamkit.storage import folders
from dreamkit.storage.folders import FileRecord, damaged_files, left_behind, occupied, partial_folder

FORMAT = 1
MANIFEST = "cache.json"
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
class CacheManifest:
    """What `cache.json` says. `tables` are by their name in `TABLES`, `files` as a checkpoint has them."""

    format: int
    dreamkit: str
    data: list[DataRecord]
    tables: dict[str, TableRecord]
    files: dict[str, FileRecord]

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> CacheManifest:
        """The manifest of `folder`; its other files are not looked at.

        Raises:
            CacheError: not a cache, a damaged one, or one of another format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            if left := left_behind(folder, MANIFEST):
                raise CacheError(left)
            if folder.exists():
                found = f"it has no {MANIFEST}" if folder.is_dir() else "it is a file"
                raise CacheError(
                    f"{folder} is not a cache: {found}; name one, or make it in a new folder: {MAKE} FOLDER"
                )
            raise CacheError(f"{folder} is not a cache: there is no such folder; {remedy(folder)}")
        try:
            data = read_json(path, FORMAT, CacheError)
        except CacheError as error:
            if error.__cause__ is None:  # it can be read, and is of a newer format
                raise
            raise CacheError(f"{error}; {remedy(folder)}") from error
        problems = [*misfits(data, get_type_hints(cls))]
        if not problems:
            manifest = cls(**data)
            problems = [*manifest._contradictions()]
        if problems:
            raise CacheError(damaged(path, problems))
        return manifest

    def verify(self, folder: Path, *, read: bool) -> None:
        """Compares the size of every file, and, where they are `read`, the hash.

        Raises:
            CacheError: one is missing, cut short or changed; all of them are named.
        """
        if problems := damaged_files(folder, self.files, read=read):
            raise CacheError(damaged(folder, problems))

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

    def _contradictions(self) -> Iterator[str]:
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


def refuse_to_replace(folder: Path, *, overwrite: bool) -> None:
    """
    Raises:
        CacheError: `folder` holds something that would be lost, and is not a cache that is to be overwritten.
    """
    what = occupied(folder)
    if what is not None and not (folder / MANIFEST).is_file():
        raise CacheError(f"{folder} {what}, and is not a cache; name another folder by --out, or remove it")
    if what is not None and not overwrite:
        raise CacheError(
            f"{folder} {what}; name a new folder by --out, or replace the cache in it by --overwrite"
        )


def begin(folder: Path) -> Path:
    """The empty folder that `folder` is written to until it is whole.

    Raises:
        CacheError: it is there already.
    """
    try:
        return folders.begin(folder, alone=True)
    except FileExistsError as error:
        raise CacheError(
            f"{partial_folder(folder)} is there: another `dreamkit cache` is writing {folder}, or one was killed; wait "
            "for it, or remove that folder"
        ) from error


def refuse_table(table: str) -> None:
    """
    Raises:
        CacheError: there is no table of this name.
    """
    if table not in TABLES:
        raise CacheError(f"there is no table '{table}' to make; {did_you_mean(table, TABLES)}")


def remedy(folder: Path) -> str:
    """What to do about a cache that does not fit."""
    replace = " --overwrite" if (folder / MANIFEST).is_file() else ""
    return f"make it anew from the recipe that is trained: {MAKE} {shlex.quote(str(folder))}{replace}"


def without(table: str) -> str:
    """What to do about a table of what changes."""
    others = [other for other in TABLES if other != table]
    return f"make a cache without {table} by --only {' --only '.join(others)}"


def damaged(path: Path, problems: list[str]) -> str:
    """What to say of a folder, or a file in it, that is not as it was written."""
    folder = path.parent if path.name == MANIFEST else path
    listed = "\n".join(f"  {problem}" for problem in problems)
    return f"{path}: the cache is damaged; {remedy(folder)}\n{listed}"
