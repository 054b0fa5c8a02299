"""Commands that make one checkpoint of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_published(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="a checkpoint that the published code saved")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="the folder to write the dreamkit checkpoint to")
    ],
) -> None:
    """Convert a published DreamLLM checkpoint.

    Writes one of dreamkit. The components that its config.json names are looked for as folders beside it, and else as
    hub names.

    Example: dreamkit import-published tests/reference/published-sd/checkpoint imported
    """
    from dreamkit.checkpoints.published import import_published as import_it
    from dreamkit.registry.registry import Registry

    import_it(folder, out, Registry.load())
    typer.echo(f"wrote {out}", err=True)


def merge_adapters(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="the folder of a checkpoint with adapters")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the folder to write the merged checkpoint to")],
) -> None:
    """Fold adapters into a checkpoint's weights.

    What it writes computes the same without adapters. Their parts then hold the merged layers in full.

    Example: dreamkit merge-adapters run1/checkpoint merged
    """
    from dreamkit.checkpoints.merge import merge_adapters as merge
    from dreamkit.registry.registry import Registry

    targets = merge(checkpoint, out, Registry.load())
    typer.echo(f"merged the adapters of {', '.join(targets)}; wrote {out}", err=True)
