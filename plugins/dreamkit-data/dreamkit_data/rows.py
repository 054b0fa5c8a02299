"""The row of a table."""

from __future__ import annotations

from typing import Any, NamedTuple

from dreamkit import Location


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        where: `file:row`, from 0, in Parquet; `file:line`, from 1, in a text table.
        table: the file or object.
        values: value of each column: what pyarrow makes of it in Python, or a text.
    """

    where: str
    table: Location
    values: dict[str, Any]
