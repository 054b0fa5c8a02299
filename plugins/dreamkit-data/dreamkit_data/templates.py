"""Templates of documents: texts in which `{column}` stands for a column, and `{{` and `}}` for braces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from dreamkit import excerpt

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]|[^{}]+")


@dataclass(frozen=True)
class Column:
    """A column of the data in a template."""

    name: str


class Template:
    """A template.

    Attributes:
        pieces: its texts and columns, in order.
        problem: why it is no template, or None.
    """

    def __init__(self, text: str) -> None:
        self.pieces: list[str | Column] = []
        self.problem: str | None = None
        for match in _PIECE.finditer(text):
            piece = match[0]
            if match[1] is not None:
                self.pieces.append(Column(match[1]))
            elif piece in ("{", "}"):
                self.problem = f"expected {{column}}, or two braces for one, got '{excerpt(text)}'"
            else:
                self.pieces.append(piece[0] if piece in ("{{", "}}") else piece)
        if self.problem is None and not self.columns:
            self.problem = f"expected at least one {{column}}, got '{excerpt(text)}'"

    @property
    def columns(self) -> list[str]:
        """The names of its columns, in order."""
        return [piece.name for piece in self.pieces if isinstance(piece, Column)]
