"""JSON files of pretrained models and of published checkpoints, and the bounds of every file that nests values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from dreamkit.errors import SourceError, describe_error, excerpt
from dreamkit.storage.paths import irregular_kind, shown_path

# far above any real config
MAX_DEPTH: Final = 50  # nested values
MAX_DIGITS: Final = 100  # in an integer


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a pretrained model.

    Raises:
        SourceError: not a regular file, not readable, not a JSON object, or nested deeper than any real config.
    """
    name = shown_path(file)
    try:
        kind = irregular_kind(file)
        if kind is not None:
            raise SourceError(f"{name}: expected a regular file, got {kind}")
        content = json.loads(file.read_text(encoding="utf-8"), parse_int=_integer)
    except SourceError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else describe_error(error)
        raise SourceError(f"{name} cannot be read as JSON: {reason}; download it again") from error
    if not isinstance(content, dict):
        raise SourceError(f"{name}: expected a JSON object, got {excerpt(json.dumps(content))}")
    if is_deep(content, MAX_DEPTH):
        raise SourceError(f"{name}: expected at most {MAX_DEPTH} nested values, got more")
    return content


def is_deep(value: Any, most: int) -> bool:
    """Return True if lists and objects are nested more than `most` deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"expected at most {MAX_DIGITS} digits in an integer, got {len(text):,}")
    return int(text)
