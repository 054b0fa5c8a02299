"""Paths of data where a recipe is expected: the data sets that may read them, by names of files and keys of records."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

from dreamkit.storage.paths import shown_path
from dreamkit.storage.urls import Location, Url

MOST_LISTED: Final = 1000  # entries of a folder
HEAD: Final = 2**16  # bytes of a file of records
IMAGES: Final = (".jpg", ".jpeg", ".png", ".webp")
PACKED: Final = ("", ".gz", ".zst")
RECORDS: Final = tuple(f"{suffix}{packed}" for suffix in (".jsonl", ".json") for packed in PACKED)
# Data sets by the ends of names, the most likely ones first. Some are those of plug-ins.
READERS: Final = {
    ".tar": ("tars", "mmc4"),
    ".parquet": ("table", "obelics"),
    **{f"{suffix}{packed}": ("table",) for suffix in (".tsv", ".csv") for packed in PACKED},
    ".jsonl.zip": ("mmc4",),
}
FOLDER_READERS: Final = ("tars", "table", "mmc4", "obelics")  # of the URL of a folder
# Data sets by a key of their records.
KEYS: Final = {
    "conversations": "conversations",
    "messages": "conversations",
    "text_list": "mmc4",
    "annotations": "coco",
    "file_name": "coco",
    "sentences": "coco",
    "timed_caption": "coco",
    "caption": "pairs",
    "text": "interleaved",
}
_RECIPE: Final = re.compile(r'"(extends|model|data|held_out|train|loss|init|generation)"\s*:')
BASES: Final = ("digits/stage2", "dreamllm/base")  # to be extended; the first one needs no files
_PLAIN: Final = re.compile(r"[\w./-]+")  # a path that YAML reads as it is
_PATTERN: Final = re.compile(r"[*?\[{]")


def data_readers(path: Location) -> tuple[str, ...]:
    """Return the names of data sets that may read the file, folder or pattern `path`; none if it seems to be no data.

    Only the start of a file is read, and nothing of a URL.
    """
    name = path.name.lower()
    readers = next((names for end, names in READERS.items() if name.endswith(end)), ())
    if isinstance(path, Url):
        return FOLDER_READERS if path.endswith("/") else readers
    if path.is_dir():
        return _folder_readers(path)
    if readers and path.is_file():
        is_mmc4 = name.endswith(".tar") and '"text_list"' in _head(path)
        return readers[::-1] if is_mmc4 else readers
    if readers and not path.exists() and _PATTERN.search(str(path)):
        return readers
    return _record_readers(path) if name.endswith(RECORDS) and path.is_file() else ()


def data_message(path: Location, name: str, shipped: Collection[str]) -> str | None:
    """Return the error about data at `path` in place of a recipe; None if it seems to be no data.

    Its last lines are a recipe that reads the data `name` and extends one of the `shipped` recipes.
    """
    readers = data_readers(path)
    if not readers:
        return None
    if isinstance(path, Url):
        kind = "a URL"
    else:
        kind = "a folder" if path.is_dir() else "a file" if path.exists() else "a pattern"
    base = next((base for base in BASES if base in shipped), "base.yaml")
    others = f" (it may be {' or '.join(readers[1:])})" if readers[1:] else ""
    shown = name if _PLAIN.fullmatch(name) else json.dumps(name)
    return (
        f"expected a recipe, got {kind} of data: '{shown_path(name)}'; write these lines into a file here, with your "
        f"recipe in place of {base}, and pass that; the data set {readers[0]} is a guess{others}:\n"
        f"    extends: {base}\n"
        "    data:\n"
        f"      - {{name: {readers[0]}, path: {shown}}}"
    )


def _folder_readers(folder: Path) -> tuple[str, ...]:
    names = sorted(_listed(folder))
    for end in READERS:
        first = next((name for name in names if name.lower().endswith(end)), None)
        if first is not None and (readers := data_readers(folder / first)):
            return readers
    if any(name.lower().endswith(IMAGES) for name in names):
        return ("pairs",)
    records = next((name for name in names if name.lower().endswith(".jsonl")), None)
    return () if records is None else tuple(each for each in data_readers(folder / records) if each == "mmc4")


def _listed(folder: Path) -> Iterator[str]:
    """Yield the first names in a folder, without hidden ones."""
    try:
        with closing(os.scandir(folder)) as entries:
            yield from (
                entry.name
                for entry in islice(entries, MOST_LISTED)
                if entry.is_file() and not entry.name.startswith(".")
            )
    except OSError:
        return


def _record_readers(path: Path) -> tuple[str, ...]:
    """Return the data sets whose records have the keys at the start of a file; a recipe may be JSON, too."""
    head = _head(path).lstrip("\ufeff \t\r\n")
    readers = [reader for key, reader in KEYS.items() if re.search(rf'"{key}"\s*:', head)]
    is_object = ".jsonl" not in path.name.lower() and not head.startswith("[")
    if is_object and (not readers or _RECIPE.search(head)):
        return ()
    return tuple(dict.fromkeys(readers)) or ("interleaved",)


def _head(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            return file.read(HEAD).decode(errors="replace")
    except (OSError, EOFError, zlib.error):
        return ""
