"""The documents that a cache skips: what they have in common, and a file that lists them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dreamkit.data.skipped import Skipped, SkippedSummary
from dreamkit.storage.writing import append_text


class SkippedFile:
    """A file with a line for each skipped document, which appears with the first one.

    Attributes:
        path: the file.
        summary: numbers of these documents.
        first: the first one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary = SkippedSummary()
        self.first: Skipped | None = None

    def add(self, documents: Sequence[Skipped]) -> None:
        """Count documents, and append their lines.

        Raises:
            OutputError: the file cannot be written.
        """
        for document in documents:
            self.first = self.first or document
            self.summary.add(document)
        if documents:
            append_text(self.path, "".join(map(_line, documents)))


def _line(document: Skipped) -> str:
    """Return a line of JSON. A cache has no places of a run, and takes documents of any length."""
    values = {name: value for name, value in asdict(document).items() if name not in ("place", "is_long")}
    return json.dumps(values) + "\n"
