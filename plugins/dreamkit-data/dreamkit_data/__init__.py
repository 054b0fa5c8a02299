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
            "mmc4", "dreamkit_data.mmc4:MMC4", "documents of MMC4, in tars or in JSON Lines beside images"
        ),
        Component(
            "table",
            "dreamkit_data.table:Table",
            "images with captions in Parquet, TSV or CSV, to draw or to read",
        ),
        Component(
            "coco",
            "dreamkit_data.coco:Coco",
            "images with captions in the JSON of COCO, Karpathy's splits or Localized Narratives",
        ),
        Component(
            "obelics",
            "dreamkit_data.obelics:Obelics",
            "documents of text and images in Parquet, as in OBELICS",
        ),
        Component(
            "huggingface",
            "dreamkit_data.huggingface:HuggingFace",
            "rows that the library datasets saved, in a template's form",
        ),
    )


@hookimpl
def dreamkit_commands() -> Sequence[Component]:
    return (
        Component(
            "data index", "dreamkit_data.index_command:index", "Index data before they are trained on."
        ),
    )
