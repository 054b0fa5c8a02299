"""Indexes of data sets: an array for each shard, computed once and then mapped into memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias, overload

import numpy as np
from rich.filesize import decimal

from dreamkit.data.document_reads import opening_errors
from dreamkit.data.index_cost import add_counts, estimate
from dreamkit.data.index_files import IndexFolder, IndexRecord, ShardStatus, mapped, remove_leftovers
from dreamkit.data.index_processes import in_processes, usable_processes
from dreamkit.data.unchanged import FileStatus, file_status, unchanged
from dreamkit.errors import OutputError, count, printable
from dreamkit.progress.bars import Bar
from dreamkit.progress.consoles import SafeConsole
from dreamkit.storage.cache_folder import VARIABLE, cache_folder
from dreamkit.storage.locks import taking_turns
from dreamkit.storage.urls import Location, Url, is_url, location

Build: TypeAlias = Callable[[Any], np.ndarray | tuple[np.ndarray, Mapping[str, Any]]]
# Returns size and version of objects by their URLs: the status that an object must have while it is read.
Statuses: TypeAlias = Callable[[Sequence[Url]], Sequence[tuple[int, int]]]
FOLDER: Final = "indexes"  # in the user's cache folder


class Indexes(Sequence[np.ndarray]):
    """The arrays of all shards of a data set, mapped into memory when they are read.

    A process keeps few of them mapped at once. Copies in other processes share the pages.

    Attributes:
        rows: number of rows of each array, int64.
        facts: values of each shard that its index has beside the rows.
        statuses: size of each shard in bytes and time of its last change in nanoseconds, when it was indexed; of an
            object its size and version.
    """

    def __init__(self, files: IndexFolder, paths: Sequence[str], records: Sequence[IndexRecord]) -> None:
        self.rows = np.array([record.rows for record in records], np.int64)
        self.facts = [record.facts for record in records]
        self.statuses = [record.status.file for record in records]
        self._files = [
            files.array(path, record.status).name for path, record in zip(paths, records, strict=True)
        ]
        self._folder = files.folder

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, shard: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, shard: slice) -> list[np.ndarray]: ...
    def __getitem__(self, shard: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return the structured array of a shard, read-only.

        Raises:
            StorageError: the file of the index is missing or damaged.
        """
        if isinstance(shard, slice):
            return [self[number] for number in range(*shard.indices(len(self)))]
        return mapped(self._folder / self._files[shard], int(self.rows[shard]))


def indexed(
    shards: Sequence[Location],
    build: Build,
    *,
    kind: str,
    version: int,
    settings: Mapping[str, Any],
    folder: Path | None = None,
    beside: Callable[[Path], Path] | None = None,
    statuses: Statuses | None = None,
) -> Indexes:
    """Return the index of each shard of a data set: a structured array that `build` computed, now or earlier.

    An index is computed in parallel if it is missing, damaged, or that of a shard with another size or time of change.
    Finished ones stay if the process ends. Several processes may call this function at once: one computes, and the
    others wait.

    Args:
        shards: files of the data set, or objects in buckets.
        build: function of a shard's path or URL that returns a one-dimensional structured array without Python objects.
            It may return a tuple of the array and a dict of facts, which JSON can hold. A fact `cost` with the numbers
            of `reads`, `bytes` and `documents` is for the estimate that is printed after the first shard. If there are
            several shards, `build` must be importable: a function of a module, or a `functools.partial` of one.
        kind: name of the format of the rows, such as `tars`.
        version: number that changes with the code of `build`.
        settings: all values that the rows depend on, besides the shard. JSON can hold them, or they are paths.
        folder: folder of the indexes; None is `indexes` in the user's cache folder.
        beside: function of a shard's path that returns the file or folder that its rows depend on, too, such as a
            folder of images whose names `build` looks up. A shard is indexed again if this has another time of change.
        statuses: function of URLs that returns a tuple of the size and the version of each object, in order. The
            version is an integer of at most 63 bits, such as a hash of an ETag. It stands for the time of change. The
            function must be importable if there are several shards, and raises the errors of objects that are missing.

    Raises:
        DocumentError: a shard is missing, or changes while it is read; and the errors of `build`.
        OutputError: an index cannot be written.
    """
    files = IndexFolder(
        index_folder(folder), kind, version, json.dumps(settings, sort_keys=True, default=os.fspath)
    )
    paths = [str(shard) if isinstance(shard, Url) else os.path.abspath(shard) for shard in shards]
    present = _present_statuses([location(path) for path in paths], beside, statuses)
    records = [
        record if record and record.status == status and files.is_whole(path, record) else None
        for path, status, record in zip(paths, present, files.read_table(paths), strict=True)
    ]
    add_counts(files=len(paths))
    if None in records:
        with folder_hint(folder):
            _complete(files, paths, present, records, partial(_compute, files, build, statuses))
    return Indexes(files, paths, [record for record in records if record is not None])


def _complete(
    files: IndexFolder,
    paths: Sequence[str],
    statuses: Sequence[ShardStatus],
    records: list[IndexRecord | None],
    compute: Callable[[tuple[str, ShardStatus]], tuple[IndexRecord, float]],
) -> None:
    """Compute the records that are None, and write the table of all."""
    with alone(files.table(paths).with_suffix(".lock")):
        for number, path in enumerate(paths):
            record = records[number] or files.read(path)
            if record and record.status == statuses[number] and files.is_whole(path, record):
                records[number] = record
        missing = [number for number, record in enumerate(records) if record is None]
        if missing:
            add_counts(computed=len(missing))
            remove_leftovers(files.folder)
            items = [(paths[number], statuses[number]) for number in missing]
            for number, record in _with_bar(compute, items, files):
                records[missing[number]] = record
        files.write_table(paths, [record for record in records if record is not None])


def _compute(
    files: IndexFolder, build: Build, statuses: Statuses | None, shard: tuple[str, ShardStatus]
) -> tuple[IndexRecord, float]:
    """Return the record of a shard, and the seconds that it took."""
    begin = time.perf_counter()
    path, status = shard
    place = location(path)
    with unchanged(place, status.file, partial(_present, statuses=statuses)):
        built = build(place)
    rows, facts = built if isinstance(built, tuple) else (built, {})
    return files.write(path, status, rows, facts), time.perf_counter() - begin


def _with_bar(
    work: Callable[[tuple[str, ShardStatus]], tuple[IndexRecord, float]],
    items: Sequence[tuple[str, ShardStatus]],
    files: IndexFolder,
) -> Iterator[tuple[int, IndexRecord]]:
    """Yield the records of `work`. Print how much there is, show a bar, and print an estimate after the first file."""
    sizes = [status.size for _, status in items]
    processes = min(usable_processes(), len(items))
    what = (
        printable(items[0][0]) if len(items) == 1 else f"{count(f'{len(items):,}', 'file')} of {files.kind}"
    )
    report(
        f"indexing {what} ({decimal(sum(sizes))}) in {count(processes, 'process')}; "
        f"the index is kept in {printable(files.folder)}"
    )
    unit = "request" if is_url(items[0][0]) else "read"
    size = 0
    with Bar("indexing", "{task.fields[size]}") as bar:
        is_shown = len(items) > 1

        def show() -> None:
            if is_shown:
                bar.move(0, len(items), size=decimal(0))

        results = in_processes(work, items, processes, started=show)
        for completed, (number, (record, seconds)) in enumerate(results, 1):
            size += sizes[number]
            if is_shown:
                if completed == 1:
                    bar.print(estimate(record, seconds, sizes, processes, unit))
                bar.move(completed, size=decimal(size))
            yield number, record


def index_folder(folder: Path | None) -> Path:
    """Return the absolute path of the folder of indexes; None is the one in the user's cache folder."""
    return (cache_folder() / FOLDER if folder is None else folder).absolute()


def report(text: str) -> None:
    """Print a line on standard error."""
    SafeConsole(stderr=True, markup=False, emoji=False, soft_wrap=True, highlight=False).print(text)


def alone(file: Path) -> AbstractContextManager[None]:
    """Wait until no other process is in such a block for the lock file `file`. The lock ends with the process.

    Raises:
        OutputError: the lock file or its folder cannot be written.
    """
    text = f"waiting for another process that writes an index in {printable(file.parent)}"
    return taking_turns(file, waiting=partial(report, text))


@contextmanager
def folder_hint(folder: Path | None) -> Iterator[None]:
    """Name the settings of the folder of indexes in errors of writing; `folder` is None if neither is set."""
    try:
        yield
    except OutputError as error:
        if folder is not None:
            raise
        hint = f"set the environment variable {VARIABLE} or the key 'index' of the data set to another folder"
        raise OutputError(f"{error}; {hint}") from error


def _present_statuses(
    shards: Sequence[Location], beside: Callable[[Path], Path] | None, statuses: Statuses | None
) -> list[ShardStatus]:
    """Return the present status of each shard. Those of objects are looked up together."""
    urls = [shard for shard in shards if isinstance(shard, Url)]
    objects = iter(_object_statuses(urls, statuses) if urls else ())
    present = []
    for shard in shards:
        if isinstance(shard, Url):
            present.append(ShardStatus(*next(objects)))
            continue
        status = _file_status(shard)
        present.append(ShardStatus(*status, 0 if beside is None else _file_status(beside(shard)).time))
    return present


def _file_status(path: Path) -> FileStatus:
    with opening_errors(path):
        return file_status(path)


def _object_statuses(urls: Sequence[Url], statuses: Statuses | None) -> list[FileStatus]:
    assert statuses is not None, "indexed() has a function for the statuses of URLs"
    return [FileStatus(*status) for status in statuses(urls)]


def _present(shard: Location, statuses: Statuses | None) -> FileStatus:
    """Return the present status of a shard, to compare it while it is read."""
    return _object_statuses([shard], statuses)[0] if isinstance(shard, Url) else file_status(shard)
