"""Fingerprints of data: hashes that are the same wherever the files are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from dreamkit.document import Document, Text
from dreamkit.errors import DreamkitError, TrainingError, count, describe_error, describe_value, excerpt

if TYPE_CHECKING:
    from dreamkit.data.dataset import Dataset

SAMPLES: Final = 64  # documents of a data set: seconds, if they are photographs


def read_fingerprints(datasets: Sequence[Dataset], key: str = "data") -> list[dict[str, str]]:
    """Return the fingerprint of each data set of the recipe's `key`. The code of a plug-in may fail in any way.

    Raises:
        TrainingError: there is none, or a name or value in it is not a string. The message has the data set.
    """
    values = []
    for number, dataset in enumerate(datasets):
        where = f"{key}.{number} ({type(dataset).__name__}): fingerprint"
        try:
            value = dataset.fingerprint()
        except DreamkitError:
            raise
        except Exception as error:
            raise TrainingError(f"{where}: {describe_error(error)}; fix its plug-in") from error
        if problem := fingerprint_problem(value):
            raise TrainingError(f"{where}: {problem}; fix its plug-in")
        values.append(value)
    return values


def fingerprint_problem(value: Any) -> str | None:
    """Return why a value is not a fingerprint, which is a dict of strings by name, or None."""
    if not isinstance(value, dict):
        return f"expected a dict of strings, got {describe_value(value)}"
    for name, text in value.items():
        if not isinstance(name, str):
            return f"expected strings as names, got {describe_value(name)}"
        if not isinstance(text, str):
            return f"{excerpt(name)}: expected a string, got {describe_value(text)}"
    return None


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
