"""Commands that convert a checkpoint into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamkit.cli.shared import echo, path_argument


def import_published(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=path_argument, help="a checkpoint of the published code"),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", parser=path_argument, help="the folder to write the dreamkit checkpoint to"
        ),
    ],
) -> None:
    """Convert a published DreamLLM checkpoint.

    Writes a dreamkit checkpoint. Components named in FOLDER/config.json are looked up as folders in FOLDER and the two
    folders above it, then as hub names.

    Example: dreamkit import-published tests/reference/published-sd/checkpoint imported
    """
    from dreamkit.checkpoints.published import import_published as import_it
    from dreamkit.registry.registry import Registry

    import_it(folder, out, Registry.load())
    echo(f"wrote {out}", err=True)


def merge_adapters(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", parser=path_argument, help="the folder of a checkpoint with adapters"
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", parser=path_argument, help="the folder to write the merged checkpoint to"
        ),
    ],
) -> None:
    """Merge adapters into a checkpoint's weights.

    The new checkpoint computes the same without adapters. It contains all weights of the merged layers.

    Example: dreamkit merge-adapters run1/checkpoint merged
    """
    from dreamkit.checkpoints.merge import merge_adapters as merge
    from dreamkit.registry.registry import Registry

    targets = merge(checkpoint, out, Registry.load())
    echo(f"merged the adapters of {', '.join(targets)}; wrote {out}", err=True)
