"""The manifest of a cache: its tables, what made them, and what its files are. Loads no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args, get_type_hints

from dreamkit.errors import CacheError
from dreamkit.files import occupied
from dreamkit.folders import FileRecord, damaged_files
from dreamkit.manifest import misfits, read_json

FORMAT = 1
MANIFEST = "cache.json"

Table: TypeAlias = Literal["features", "latents"]
TABLES: Final[tuple[Table, ...]] = get_args(Table)
MADE_BY: Final[Mapping[str, str]] = {"features": "vision_encoder", "latents": "image_decoder"}


class Maker(TypedDict):
    """What computes a table.

    `part` is its section of the recipe, `weights` a hash of those that take part, and `preprocess` one of what it makes
    of a fixed picture, at `image_size` pixels; `precision` is that of `train`.
    """

    part: dict[str, Any]
    weights: str
    image_size: int
    preprocess: str
    precision: str


class TensorRecord(TypedDict):
    """One row of a tensor."""

    dtype: str
    shape: list[int]


class TableRecord(TypedDict):
    maker: Maker
    pictures: int
    shards: int
    tensors: dict[str, TensorRecord]


@dataclass(frozen=True)
class CacheManifest:
    """What `cache.json` says. `tables` are by their name in `TABLES`, `files` as a checkpoint has them."""

    format: int
    dreamkit: str
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
            found = "there is no such folder"
            if folder.exists():
                found = f"it has no {MANIFEST}" if folder.is_dir() else "it is a file"
            raise CacheError(f"{folder} is not a cache: {found}; {remedy(folder)}")
        data = read_json(path, FORMAT, CacheError)
        problems = [*misfits(data, get_type_hints(cls))]
        if not problems:
            manifest = cls(**data)
            problems = [*manifest._contradictions()]
        if problems:
            raise CacheError(_damaged(folder, MANIFEST, problems))
        return manifest

    def verify(self, folder: Path, files: Sequence[str]) -> None:
        """Reads `files` and compares size and hash.

        Raises:
            CacheError: one is missing, cut short or changed; all of them are named.
        """
        if problems := damaged_files(folder, {name: self.files[name] for name in files}):
            raise CacheError(_damaged(folder, "", problems))

    def _contradictions(self) -> Iterator[str]:
        if not self.tables:
            yield "tables: none found"
        for table, record in self.tables.items():
            if table not in TABLES:
                yield f"tables: '{table}' found, but a table is one of {', '.join(TABLES)}"
            wanted = {shard_name(table, number) for number in range(record["shards"])}
            found = {name for name in self.files if name.startswith(f"{table}-")}
            if wanted != found or not wanted:
                yield f"files: {len(found)} of '{table}' found, but {record['shards']} shards"


def shard_name(table: str, number: int) -> str:
    """The name of a file of rows."""
    return f"{table}-{number:05}.safetensors"


def refuse_to_replace(folder: Path) -> None:
    """
    Raises:
        CacheError: `folder` holds something that is not a cache, and would be lost.
    """
    what = occupied(folder)
    if what is not None and not (folder / MANIFEST).is_file():
        raise CacheError(f"{folder} {what}, and is not a cache; name another folder by --out, or remove it")


def differing(table: str, there: Maker, here: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing said in `here` of what makes a table that is otherwise in a cache."""
    for key, found in here.items():
        before = there[key]  # type: ignore[literal-required]
        if key != "part":
            if before != found:
                yield f"{MADE_BY[table]}: {key}: {_short(before)} in the cache, {_short(found)} now"
            continue
        for name in sorted(before.keys() | found.keys()):
            # where weights came from is told, but what they are decides
            if name != "pretrained" and before.get(name) != found.get(name):
                was, now = before.get(name), found.get(name)
                yield f"{MADE_BY[table]}: {name}: {was!r} in the cache, {now!r} now"


def _short(value: Any) -> str:
    return f"{value:.16}..." if isinstance(value, str) and len(value) == 64 else str(value)


def remedy(folder: Path) -> str:
    """What to do about a cache that does not fit."""
    return f"make it anew from the recipe that is trained: dreamkit cache RECIPE --out {shlex.quote(str(folder))}"


def _damaged(folder: Path, file: str, problems: list[str]) -> str:
    listed = "\n".join(f"  {problem}" for problem in problems)
    return f"{folder / file}: the cache is damaged; {remedy(folder)}\n{listed}"
