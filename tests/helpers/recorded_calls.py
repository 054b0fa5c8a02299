"""Calls of a part's method, recorded while it computes as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def rows(first: Any, *_: Any) -> int:
    """Return the number of rows of the first argument."""
    return len(first)


def filled(embeds_BTD: Any, positions_BT: Any, segments_BT: Any, *_: Any) -> int:
    """Return the number of tokens of a language model's call, without padding."""
    return int((segments_BT >= 0).sum())


def recorded(
    monkeypatch: pytest.MonkeyPatch, part: Any, method: str, about: Callable[..., Any] = rows
) -> list[Any]:
    """Return a list that gets `about` of the positional arguments of each call from now on."""
    calls: list[Any] = []
    original = getattr(part, method)

    def record(*args: Any, **named: Any) -> Any:
        calls.append(about(*args))
        return original(*args, **named)

    monkeypatch.setattr(part, method, record)
    return calls
