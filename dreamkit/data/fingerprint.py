"""Fingerprints of data: hashes that are the same wherever the files are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from dreamkit.document import Document, Text
from dreamkit.errors import count

if TYPE_CHECKING:
    from dreamkit.data.dataset import Dataset

SAMPLES: Final = 64  # documents of a data set: seconds, if they are photographs


def sampled(dataset: Dataset) -> dict[str, str]:
    """Return the number of documents, and hashes of up to `SAMPLES` of them at even distances.

    A document that cannot be read has no hash: it may be corrected before the run is resumed.
    """
    size = len(dataset)
    samples = min(SAMPLES, size)
    hashes = {"documents": f"{size:,}"}
    for index in [number * size // samples for number in range(samples)]:
        try:
            hashes[f"document {index}"] = document_hash(dataset[index])
        except Exception:  # the code of a plug-in may fail in any way; training reports it at this document
            continue
    return hashes


def document_hash(document: Document) -> str:
    """Return a hash of the segments of a document: texts, pixels of images, roles and what is trained."""
    digest = hashlib.sha256()
    for segment in document.segments:
        if isinstance(segment, Text):
            digest.update(repr(("text", segment.text, segment.train_on, segment.role)).encode())
            continue
        picture = segment.picture
        about = segment.read, segment.draw, segment.train_on, segment.role, picture.mode, picture.size
        digest.update(repr(("image", *about, picture.getpalette())).encode())
        digest.update(picture.tobytes())
    return _shortened(digest)


def hash_of(lines: Iterable[bytes]) -> str:
    """Return a hash of lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line + b"\n")
    return _shortened(digest)


def fingerprint_differences(before: Sequence[dict[str, str]], now: Sequence[dict[str, str]]) -> list[str]:
    """Return a line for each data set whose fingerprint has another string for a name than before."""
    if len(before) != len(now):
        return [f"data: had {count(len(before), 'data set')}, has {len(now)}"]
    lines = []
    for number, (then, current) in enumerate(zip(before, now, strict=True)):
        names = [name for name in then if name in current and then[name] != current[name]]
        if "documents" in names:
            lines.append(
                f"data.{number}: had {count(then['documents'], 'document')}, has {current['documents']}"
            )
        elif names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"data.{number}: changed: {names[0]}{more}")
    return lines


def _shortened(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:32]
