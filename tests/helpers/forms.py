"""Parts in other forms than their miniature."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def form(cls: Any, drop: tuple[str, ...] = (), **changes: Any) -> Any:
    """What builds the miniature with other settings; those of `config` are put among the miniature's own.

    `drop` names settings of the miniature's `config` that are left out.
    """

    def build() -> Any:
        given = cls.tiny_config()
        config = {**given.config, **changes.get("config", {})}
        kept = {name: value for name, value in config.items() if name not in drop}
        return cls.from_config(replace(given, **{**changes, "config": kept}))

    return build
