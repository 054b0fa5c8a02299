"""Tiny parts with other settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def form(cls: Any, drop: tuple[str, ...] = (), **changes: Any) -> Any:
    """Return a function that builds the tiny part of `cls` with other settings.

    Settings under `config` are merged into those of the tiny config; `drop` names settings of it to leave out.
    """

    def build() -> Any:
        tiny = cls.tiny_config()
        config = {**tiny.config, **changes.get("config", {})}
        config = {name: value for name, value in config.items() if name not in drop}
        return cls.from_config(replace(tiny, **{**changes, "config": config}))

    return build
