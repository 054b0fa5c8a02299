"""The contents of held-out documents by hash, to find those that are also in training data."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator

import numpy as np

from dreamkit.document import Document
from dreamkit.parts.pictures import to_rgb


def content_hashes(document: Document) -> Iterator[int]:
    """Yield a hash of 64 bits for each image of a document, or of its text if it has none.

    Images are compared as parts see them. Texts are compared without case and spaces. Only whole texts count: "a cat"
    is the caption of many images.
    """
    for image in document.images:
        picture = to_rgb(image.picture)
        yield _hash(repr(picture.size).encode() + picture.tobytes())
    if not document.images and (text := "".join(document.text.split()).casefold()):
        yield _hash(text.encode())


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class ContentIndex:
    """The hashes of documents, with a number for each: 16 bytes an image."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._numbers = array("Q")
        self._order: np.ndarray | None = None

    def add(self, number: int, document: Document) -> None:
        """Add the contents of document `number`."""
        for content in content_hashes(document):
            self._hashes.append(content)
            self._numbers.append(number)
        self._order = None

    def find(self, document: Document) -> int | None:
        """Return the number of an added document with a content of this one, or None."""
        if not self._hashes:
            return None
        hashes = np.frombuffer(self._hashes, np.uint64)
        if self._order is None:
            self._order = np.argsort(hashes, kind="stable")
        for content in content_hashes(document):
            value = np.uint64(content)
            place = int(np.searchsorted(hashes, value, sorter=self._order))
            if place < len(hashes) and hashes[self._order[place]] == value:
                return self._numbers[int(self._order[place])]
        return None
