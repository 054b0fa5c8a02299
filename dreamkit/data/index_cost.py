"""The cost of indexing: an estimate from the first file, and the numbers of files that were indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from rich.filesize import decimal

from dreamkit.data.index_files import IndexRecord
from dreamkit.errors import count


@dataclass
class IndexCounts:
    """The numbers of files whose indexes were opened.

    Attributes:
        files: number of files.
        computed: number of those that had no index, and were read.
    """

    files: int = 0
    computed: int = 0


_COUNTS: Final = ContextVar[IndexCounts | None]("_COUNTS", default=None)


@contextmanager
def index_counts() -> Iterator[IndexCounts]:
    """Yield the numbers of files whose indexes are opened in a `with` block, as by the data sets made in it."""
    counts = IndexCounts()
    token = _COUNTS.set(counts)
    try:
        yield counts
    finally:
        _COUNTS.reset(token)


def add_counts(files: int = 0, computed: int = 0) -> None:
    """Add to the numbers of the enclosing `index_counts`, if there is one."""
    if (counts := _COUNTS.get()) is not None:
        counts.files += files
        counts.computed += computed


def estimate(first: IndexRecord, seconds: float, sizes: Sequence[int], processes: int, unit: str) -> str:
    """Return what it takes to index files of `sizes` bytes if they are like the first one, which took `seconds`.

    `unit` is the name of a read.

    The fact `cost` of the first one has numbers of `reads`, `bytes` and `documents`. Without it, files are read whole.
    """
    scale = sum(sizes) / max(1, first.size)
    cost = first.facts.get("cost")
    cost = cost if isinstance(cost, dict) else {}
    size = decimal(round(_number(cost, "bytes", first.size) * scale))
    reads, documents = (_number(cost, name) * scale for name in ("reads", "documents"))
    parts = [
        f"about {count(f'{documents:,.0f}', 'document')}" if documents else "",
        f"{count(f'{reads:,.0f}', unit)} of {size} in all" if reads else f"{size} to read",
        f"{seconds * scale / processes:,.1f} s in {count(processes, 'process')}",
    ]
    return f"as the first file shows: {', '.join(filter(None, parts))}"


def _number(cost: dict[str, Any], name: str, default: float = 0.0) -> float:
    value = cost.get(name)
    return value if isinstance(value, int | float) else default
