"""JSON files of pretrained models and of published checkpoints, and the bounds of every file that nests values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from dreamkit.errors import DreamkitError, SourceError, describe_error, excerpt, printable
from dreamkit.storage.paths import irregular_kind, shown_path

# far above any real config
MAX_DEPTH: Final = 50  # nested values
MAX_DIGITS: Final = 80  # in an integer; a message shows all of them
MAX_BYTES: Final = 10**8  # of a config or tokenizer file; those of 256,000 tokens have 35 MB


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
        if (problem := size_problem(file)) is not None:
            raise SourceError(f"{name}: {problem}")
        return json_object(file.read_text(encoding="utf-8"))
    except SourceError:
        raise
    except DreamkitError as error:
        raise SourceError(f"{name}: {error}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else describe_error(error)
        raise SourceError(f"{name} cannot be read as JSON: {reason}; download it again") from error


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text. Its keys may be any texts: messages escape them with `printable`.

    Raises:
        JSONDecodeError: not JSON.
        DreamkitError: not an object, nested deeper than any real config, or an integer of too many digits.
    """
    try:
        content = json.loads(text, parse_int=bounded_integer)
    except RecursionError:
        raise DreamkitError(f"expected at most {MAX_DEPTH} nested values, got more") from None
    if not isinstance(content, dict):
        raise DreamkitError(f"expected a JSON object, got {excerpt(json.dumps(content))}")
    if is_deep(content, MAX_DEPTH):
        raise DreamkitError(f"expected at most {MAX_DEPTH} nested values, got more")
    return content


def size_problem(file: Path) -> str | None:
    """Return why a file is too large to be read into memory, or None. A sparse file may have any size.

    Raises:
        OSError: the file cannot be reached.
    """
    size = file.stat().st_size
    return (
        f"expected at most {MAX_BYTES:,} bytes, got {size:,}; download it again" if size > MAX_BYTES else None
    )


def key_problem(key: str) -> str | None:
    """Return why a text cannot be a key of a recipe, or None. Messages show keys whole, so these must fit on a line."""
    shown = printable(key)
    return None if shown == key else f"expected a key without control characters, got '{shown}'"


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


def bounded_integer(text: str) -> int:
    """Return the integer of a JSON text.

    Raises:
        DreamkitError: it has more digits than any real one.
    """
    digits = len(text.removeprefix("-"))
    if digits > MAX_DIGITS:
        raise DreamkitError(f"expected at most {MAX_DIGITS} digits in an integer, got {digits:,}")
    return int(text)
