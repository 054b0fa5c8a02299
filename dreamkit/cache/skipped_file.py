"""The list of the documents that a cache skips, `skipped.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from dreamkit.data.skipped import Skipped
from dreamkit.storage.writing import writing


def write_skipped(path: Path, documents: Iterable[Skipped]) -> None:
    """Write a line for each document; no file without one.

    Raises:
        OutputError: the file cannot be written.
    """
    with writing(path):
        path.unlink(missing_ok=True)  # of a command that was killed
        lines = map(_line, documents)
        if (first := next(lines, None)) is not None:
            with path.open("w", encoding="utf-8") as file:
                file.write(first)
                file.writelines(lines)


def _line(document: Skipped) -> str:
    """Return a line of JSON. A cache has no places of a run, and takes documents of any length."""
    values = {name: value for name, value in asdict(document).items() if name not in ("place", "is_long")}
    return json.dumps(values) + "\n"
