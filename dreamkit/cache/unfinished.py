"""The unfinished work on a cache: a folder beside it, from which `dreamkit cache --resume` continues.

    .NAME.unfinished/
        work.json              the description: what the work is made from
        listed/00000.json      the images of a block of documents
        computed/00000.json    size and sha256 of the files of a block of rows
        tables/                the files of the cache
        taken/, progress/      blocks that processes have taken, and how far each process is; of one command

Files in JSON have a hash of their content. So a block that is half written or damaged counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from dreamkit.cache.manifest import PART_OF, CacheManifest, DataRecord
from dreamkit.cache.recipe_check import identity_differences
from dreamkit.data.fingerprint import fingerprint_differences
from dreamkit.errors import CacheError, count, excerpt, printable
from dreamkit.recipe.written import shown_setting
from dreamkit.storage.folders import remove_folder
from dreamkit.storage.writing import write_text, writing

Stage: TypeAlias = Literal["listed", "computed"]
STAGES: Final[tuple[Stage, ...]] = ("listed", "computed")
FORMAT: Final = 1  # of the folder
THEN: Final = "in the unfinished work"


class Unfinished:
    """The folder of the unfinished work on the cache `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        place = Path(os.path.realpath(out))
        self.folder = place.with_name(f".{place.name}.unfinished")
        self.tables = self.folder / "tables"

    def has_blocks(self) -> bool:
        """Return True if there is a finished block to continue from.

        The tables are renamed when all blocks are finished; then nothing is left to do.
        """
        return self.tables.is_dir() and any(any((self.folder / stage).glob("[!.]*.json")) for stage in STAGES)

    def require_allowed(self, *, resume: bool, overwrite: bool) -> None:
        """Check that unfinished work is continued or thrown away as the user asks.

        Raises:
            CacheError: there is work that is neither continued nor thrown away, or none to continue.
        """
        if resume and not self.has_blocks() and not (self.out / CacheManifest.FILE).is_file():
            raise CacheError(f"no unfinished work on {self.out} to continue; leave out --resume")
        if self.has_blocks() and not (resume or overwrite):
            raise CacheError(
                f"{self.folder} is unfinished work on {self.out}; continue it with --resume, or throw it away with "
                "--overwrite"
            )

    def open(self, description: Mapping[str, Any], *, resume: bool) -> None:
        """Open the folder for work of this description: the one in it, or new work. The main process does this.

        Raises:
            CacheError: with `resume`, the work in the folder is of another recipe, other data or other weights.
            OutputError: the folder cannot be written.
        """
        file = self.folder / "work.json"
        if resume:
            before = read_sealed(file)
            lines = (
                ["work.json: missing or damaged"] if before is None else [*differences(before, description)]
            )
            if lines:
                listed = "".join(f"\n  {line}" for line in lines)
                raise CacheError(
                    f"{self.folder} cannot be continued; use the recipe, data and weights of its start, or throw it "
                    f"away with --overwrite instead of --resume{listed}"
                )
        else:
            self.remove()
        with writing(self.folder):
            for name in ("taken", "progress"):
                remove_folder(self.folder / name)
            for name in (*STAGES, self.tables.name, "taken", "progress"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not resume:
            write_sealed(file, description)

    def finished_cache(self, description: Mapping[str, Any]) -> CacheManifest:
        """Return the manifest of the cache `out`, which is complete and has this description.

        Raises:
            CacheError: it is of another recipe, other data or other weights, or damaged.
        """
        manifest = CacheManifest.read(self.out)
        now = description["tables"]
        lines = [*_data_differences(manifest.data, description["data"], "in the cache")]
        for table, record in manifest.tables.items():
            if table in now:
                lines += identity_differences(PART_OF[table], record["identity"], now[table]["identity"])
            else:
                lines.append(f"tables: {table} in the cache, and not now")
        if lines:
            listed = "".join(f"\n  {line}" for line in lines)
            raise CacheError(
                f"{self.out} is complete, and of other settings or data; replace it with --overwrite and without "
                f"--resume{listed}"
            )
        self.remove()
        return manifest

    def block(self, stage: Stage, number: int) -> dict[str, Any] | None:
        """Return the content of a finished block; None if it is missing or damaged."""
        return read_sealed(self._file(stage, number))

    def finish_block(self, stage: Stage, number: int, content: Mapping[str, Any]) -> None:
        """Write the content of a block, which is finished with it.

        Raises:
            OutputError: it cannot be written.
        """
        write_sealed(self._file(stage, number), content)

    def remove(self) -> None:
        """Remove the folder, if there is one."""
        remove_folder(self.folder)

    def hint(self) -> str:
        """Return how to continue after a process has ended."""
        if not self.has_blocks():
            return "no block is finished; run the command again"
        return f"the finished part is in {shlex.quote(str(self.folder))}; continue with --resume"

    def _file(self, stage: Stage, number: int) -> Path:
        return self.folder / stage / f"{number:05}.json"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line with both values for each difference between the descriptions of two works."""
    for name in ("format", "dreamkit", "documents_per_block", "shard_bytes"):
        if before.get(name) != now[name]:
            yield f"{name}: {excerpt(str(before.get(name)))} {THEN}, {now[name]} now"
            if name in ("format", "dreamkit"):
                return
    tables = before["tables"], now["tables"]
    if tables[0].keys() != tables[1].keys():
        yield f"tables: {' and '.join(tables[0])} {THEN}, {' and '.join(tables[1])} now"
    for table in tables[0].keys() & tables[1].keys():
        then, current = (each[table] for each in tables)
        yield from identity_differences(PART_OF[table], then["identity"], current["identity"], THEN)
        if then["tensors"] != current["tensors"]:
            yield f"{table}: {excerpt(str(then['tensors']))} {THEN}, {current['tensors']} now"
    settings = [*_data_differences(before["data"], now["data"], THEN)]
    yield from settings
    if not settings:
        yield from fingerprint_differences(before["fingerprints"], now["fingerprints"])


def _data_differences(before: list[DataRecord], now: list[DataRecord], then: str) -> Iterator[str]:
    if len(before) != len(now):
        yield f"data: {count(len(before), 'data set')} {then}, {len(now)} now"
        return
    for number, records in enumerate(zip(before, now, strict=True)):
        values = [{"name": each["name"], **each["settings"]} for each in records]
        for name in sorted(values[0].keys() | values[1].keys()):
            one, other = (each.get(name) for each in values)
            if one != other:
                yield f"data.{number}: {printable(name)}: {shown_setting(one)} {then}, {shown_setting(other)} now"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values in JSON, with their hash.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps(content)
    write_text(path, f"{_seal(text)}\n{text}\n")


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return the content of a file of `write_sealed`; None if it is missing or damaged."""
    with suppress(OSError, ValueError):
        seal, text = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if _seal(text) == seal:
            content: dict[str, Any] = json.loads(text)
            return content
    return None


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
