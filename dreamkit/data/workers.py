"""Errors of the processes that read data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dreamkit.errors import DreamkitError


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise a user error of a worker process with its own message, without torch's text and traceback around it."""
    try:
        yield
    except DreamkitError as error:
        kind, text = type(error), str(error)
        if not text.startswith(f"Caught {kind.__name__} in DataLoader worker"):
            raise
        _, _, message = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        raise kind(message.removesuffix("\n")) from None
