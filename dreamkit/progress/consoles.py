"""Consoles that print no control characters of files, names and plug-ins."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from dreamkit.errors import printable_lines


class SafeConsole(Console):
    """A console that escapes control characters in the strings that it prints, also in tables."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)
