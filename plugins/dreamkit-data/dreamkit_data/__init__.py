"""Data sets in the formats that people have."""

from __future__ import annotations

from collections.abc import Sequence

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_datasets() -> Sequence[Component]:
    return (
        Component(
            "tars", "dreamkit_data.tars:Tars", "images with captions in tars, as img2dataset writes them"
        ),
        Component(
            "table",
            "dreamkit_data.table:Table",
            "images with captions in Parquet, TSV or CSV, to draw or to read",
        ),
    )
