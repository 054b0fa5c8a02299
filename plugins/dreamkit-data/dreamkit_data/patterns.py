"""Files and objects that a recipe names by paths or URLs, folders, globs such as `*.tar`, and braces."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from dreamkit import DocumentError, Location, Url, count, printable
from dreamkit_data import buckets
from dreamkit_data.buckets import is_remote

Place = TypeVar("Place", bound=Location)

MOST_FILES: Final = 1_000_000
MOST_BRACES: Final = 20  # in one path
_RANGE: Final = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def matching_files(paths: Place | Sequence[Place], suffixes: Sequence[str]) -> list[Place]:
    """Return the files and objects that `paths` name, in the order of `paths`.

    Each path is one of these:

    - a file, whatever characters its name has;
    - a folder: the files in it with one of `suffixes`, by name, without hidden ones;
    - braces as in a shell: `{a,b}`, or `{00..12}` with its zeros. Each of these files must exist;
    - a glob of Python: its matches, by name. Braces may hold globs.

    URLs are the same, with these differences: the URL of a folder ends with `/`, a glob is one of fsspec, and objects
    of braces are looked up later, with their statuses (`buckets.statuses`).

    Raises:
        DocumentError: a path names no file, a file is missing or named twice, or more than a million files are named.
        StorageError: the network or the service of a bucket fails.
    """
    files: list[Any] = []
    for path in [paths] if isinstance(paths, Path | Url) else paths:
        found = _objects(path, tuple(suffixes)) if is_remote(path) else _files(path, tuple(suffixes))
        named = list(islice(found, MOST_FILES + 1 - len(files)))
        if not named:
            is_folder = path.endswith("/") if is_remote(path) else os.path.isdir(path)
            reason = (
                f"no file named *{' or *'.join(suffixes)} in this folder" if is_folder else "no such file"
            )
            raise DocumentError(f"{printable(path)}: {reason}; correct the path of the data set")
        files += named
        if len(files) > MOST_FILES:
            raise DocumentError(
                f"{printable(path)}: expected at most {MOST_FILES:,} files in a data set, got more"
            )
    if not files:
        raise DocumentError("expected the path of a data set, got an empty list")
    missing = [file for file in files if not is_remote(file) and not os.path.exists(file)]
    if missing:
        some = f"; {len(missing):,} of {count(f'{len(files):,}', 'file')} are missing"
        rest = some if missing[1:] else " or folder"
        raise DocumentError(f"{printable(missing[0])}: no such file{rest}; correct the path of the data set")
    names = set()
    for file in files:
        if file in names:
            raise DocumentError(f"{printable(file)}: expected each file once, got it twice; correct the path")
        names.add(file)
    return files


def _files(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of one path. Those of braces may be missing."""
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        yield from (path / name for name in names if name.lower().endswith(suffixes))
        return
    for text in [str(path)] if os.path.exists(path) else _expand(str(path), MOST_BRACES):
        if glob.has_magic(text) and not os.path.exists(text):
            yield from map(Path, sorted(glob.iglob(text, recursive=True)))
        else:
            yield Path(text)


def _objects(url: Url, suffixes: tuple[str, ...]) -> Iterator[Url]:
    """Yield the objects of one URL. Those of braces, and one without a pattern, may be missing."""
    for text in map(Url, _expand(str(url), MOST_BRACES)):
        if text.endswith("/"):
            members = (each for each in buckets.listed(text) if not each.name.startswith("."))
            yield from (each for each in members if each.lower().endswith(suffixes))
        elif glob.has_magic(text):
            yield from buckets.matches(text)
        else:
            yield text


def _expand(pattern: str, most: int) -> Iterator[str]:
    """Yield the paths that braces stand for; the first braces vary slowest."""
    for start, character in enumerate(pattern):
        end = _closing(pattern, start) if character == "{" else None
        choices = None if end is None else _choices(pattern[start + 1 : end])
        if end is None or choices is None:
            continue  # part of a name
        if not most:
            raise DocumentError(
                f"{printable(pattern)}: expected at most {MOST_BRACES} braces in a path, got more"
            )
        for choice in choices:
            for middle in _expand(choice, most - 1):
                for rest in _expand(pattern[end + 1 :], most - 1):
                    yield pattern[:start] + middle + rest
        return
    yield pattern


def _closing(pattern: str, start: int) -> int | None:
    """Return the position of the brace that closes the one at `start`, or None."""
    depth = 0
    for position in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[position], 0)
        if depth == 0:
            return position
    return None


def _choices(inside: str) -> Iterator[str] | None:
    """Yield the texts that stand in braces, or return None if these braces are part of a name."""
    if (match := _RANGE.fullmatch(inside)) is not None:
        first, last = int(match[1]), int(match[2])
        is_padded = any(len(text) > 1 and text.startswith("0") for text in match.groups())
        width = max(map(len, match.groups())) if is_padded else 0
        step = 1 if first <= last else -1
        return (f"{number:0{width}}" for number in range(first, last + step, step))
    parts, depth = [""], 0
    for character in inside:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return iter(parts) if len(parts) > 1 else None
