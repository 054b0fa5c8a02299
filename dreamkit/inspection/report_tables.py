"""The report of a recipe's data for people: a table of its sources, then lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from rich.console import RenderableType
from rich.table import Table

from dreamkit.errors import count, excerpt, printable
from dreamkit.inspection.data_report import DataReport, Source

MOST_SIZES: Final = 4  # of images, in a line


def report_lines(report: DataReport) -> Iterator[RenderableType]:
    """Yield the table and lines of a report."""
    columns = ("data", "reader", "documents", "read", "usable", "tokens", "longest", "learned", "images")
    table = Table(*columns, "image share", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for source in report.sources:
        table.add_row(*_row(source))
    yield table
    if any(source.usable for source in report.sources):
        yield (
            "tokens, learned, images (read + drawn): means of usable documents; image share: of their tokens"
        )
    for source in report.sources:
        yield from _lines(source)
    packing = report.packing
    if packing is not None and packing.tokens:
        documents = count(f"{packing.documents:,}", "document")
        yield (
            f"{count(packing.batches, 'batch')} of {documents}: {count(f'{packing.rows:,}', 'row')}, "
            f"{packing.filled / packing.tokens:.1%} of their {count(f'{packing.tokens:,}', 'token')} filled"
        )
    if report.held_out is not None:
        shared = sum(source.duplicates for source in report.sources)
        yield (
            f"{count(f'{shared:,}', 'document')} with content of the "
            f"{count(f'{report.held_out:,}', 'held-out document')}"
        )
    yield from report.notes


def _row(source: Source) -> tuple[str, ...]:
    if source.documents is None:
        return (source.key, source.name, *["-"] * 8)
    size = f"{source.documents:,}"
    counts = (source.key, source.name, size, f"{source.read:,}", f"{source.usable:,}")
    if not source.usable:
        return (*counts, *["-"] * 5)
    read, drawn = source.images_read / source.usable, source.images_drawn / source.usable
    return (
        *counts,
        f"{source.tokens / source.usable:.1f}",
        f"{source.longest:,}",
        f"{source.learned / source.usable:.1f}",
        f"{read:.1f} + {drawn:.1f}",
        f"{source.image_tokens / source.tokens:.0%}",
    )


def _lines(source: Source) -> Iterator[str]:
    """Yield the first document of a source, its long documents, and the sizes of its images."""
    if source.example is not None:
        yield f"{source.key}: {source.example}"
    if source.too_long:
        images = f", with {count(source.images_cut, 'image')} cut off" if source.images_cut else ""
        yield (
            f"{source.key}: {count(source.too_long, 'document')} longer than a row{images} (train.too_long), such as "
            f"{printable(source.long_example or '')}"
        )
    if source.image_sizes:
        common = Counter(source.image_sizes).most_common(MOST_SIZES)
        listed = ", ".join(f"{excerpt(size)} ({number:,})" for size, number in common)
        more = len(source.image_sizes) - len(common)
        yield f"{source.key}: sizes of images: {listed}" + (f" and {more:,} more" if more else "")
