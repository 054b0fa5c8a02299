"""Caches of many small blocks: images that occur in several of them, bad documents, and data without images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import caches
import layouts
import tiny
from dreamkit.cache.caching import CacheReport
from dreamkit.cache.manifest import CacheManifest
from dreamkit.cache.write import make_cache
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError

DOCUMENTS = 30
SIZES = {"shard_bytes": 1000, "block_documents": 4}  # features have 3 rows in a file, latents one


class RepeatingDocuments(layouts.TinyDocuments):
    """Documents whose images are also in documents of other blocks. Some have no image.

    Those of `bad` cannot be read. Document `changed` has the images of the next one.
    """

    def __init__(self, bad: Sequence[int] = (2, 13), changed: int | None = None) -> None:
        super().__init__([document(number + (number == changed)) for number in range(DOCUMENTS)])
        self.bad = bad

    def __getitem__(self, index: int) -> Document:
        if index in self.bad:
            raise DocumentError(f"/data/a.tar!{index}: cut")
        return super().__getitem__(index)


def document(number: int) -> Document:
    """Return a document of up to three images."""
    pictures = [tiny.picture(seed % 20) for seed in (number, 7 * number)]
    images = [Image(pictures[0], draw=number % 2 == 0), Image(pictures[1], draw=True, read=number % 3 == 0)]
    return Document((Text("a"), *images[: number % 4]), name=f"document {number}")


def write(out: Path, **options: Any) -> CacheReport:
    """Write a cache of these documents in many blocks, in the processes that call this function."""
    options = {"datasets": [RepeatingDocuments()], **SIZES, **options}
    return make_cache(options.pop("recipe", None) or caches.recipe(), caches.REGISTRY, out, **options)


def verify(folder: Path) -> None:
    """Compare all files of a cache with its manifest."""
    CacheManifest.read(folder).verify(folder)
