"""Bars on standard error, and what moves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class CachingProgress(NamedTuple):
    """How many of all documents have been looked through, and how many pictures found in them, each counted once."""

    documents: int
    of: int
    pictures: int


@contextmanager
def caching_bar() -> Iterator[Callable[[CachingProgress], None]]:
    """A bar of documents looked through and pictures computed, on standard error; what it gives moves it."""
    progress = Progress(
        TextColumn("caching"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pictures]} pictures"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = progress.add_task("", total=None, pictures=0)
    with progress:
        yield lambda at: progress.update(task, completed=at.documents, total=at.of, pictures=at.pictures)
