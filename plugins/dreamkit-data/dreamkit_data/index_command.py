"""The command `dreamkit data index`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from dreamkit import Dataset, Registry


def index(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="PATTERN|RECIPE...",
            help="tars or other files of --format, such as '/data/{00000..01000}.tar'; or a recipe, for all its data",
        ),
    ],
    kind: Annotated[
        Literal["tars", "mmc4"] | None,
        typer.Option("--format", help="format of the files of a pattern; default: tars"),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--index",
            metavar="FOLDER",
            help="folder of the index of a pattern; default: the user's cache folder",
        ),
    ] = None,
) -> None:
    """Index data before they are trained on.

    A training indexes its data when it starts, in this way: each file is read once, in parallel, and the places of its
    samples are kept. An interrupted command continues where it was. Of tars, only the headers and the small members are
    read. The settings of a pattern are the defaults of the format. To index with filters or other captions, pass the
    recipe that has them. Prints how much there is to read, an estimate after the first file, then the number of
    documents, and what is left out.

    Example: dreamkit data index digits/stage2

    Example: dreamkit data index '/data/laion/{00000..01000}.tar' --index /data/laion-index
    """
    from pathlib import Path

    from dreamkit import DreamkitError, Registry, load_recipe, location

    registry = Registry.load()
    recipes: list[str] = []
    patterns: list[str] = []
    for target in targets:
        is_recipe = target.endswith((".yaml", ".yml")) or target in registry.shipped_recipes()
        (recipes if is_recipe else patterns).append(target)
    options = [name for name, value in (("--format", kind), ("--index", folder)) if value is not None]
    if options and not patterns:
        raise DreamkitError(
            f"{' and '.join(options)}: expected a pattern of files, got recipes alone; remove it, and set the format "
            "and 'index' in the data sets of the recipe"
        )
    for target in patterns:
        _check_path(target, registry)
    sections = [section for target in recipes for section in load_recipe(target, (), registry).data]
    if patterns:
        cls = registry.get("dataset", kind or "tars")
        paths = [location(pattern) for pattern in patterns]
        _open(kind or "tars", cls, cls.Config(path=paths, index=None if folder is None else Path(folder)))
    for section in sections:
        _open(section.name, registry.get("dataset", section.name), section.config)


def _check_path(target: str, registry: Registry) -> None:
    """Raise an error for a target that may be the name of a recipe and is none: no file, pattern or absolute path."""
    import glob
    import os

    from dreamkit import DocumentError, Url, did_you_mean, location, printable

    if isinstance(location(target), Url):
        return
    is_file = target.endswith((".tar", ".jsonl", ".zip", ".gz", ".zst"))
    is_pattern = glob.has_magic(target) or "{" in target or is_file
    if not is_pattern and not os.path.isabs(target) and not os.path.exists(target):
        nearest = did_you_mean(target, registry.shipped_recipes())
        raise DocumentError(f"{printable(target)}: no such file or recipe; {nearest}")


def _open(name: str, cls: type[Dataset], config: object) -> None:
    """Open a data set, which indexes it, and print its documents and what is left out."""
    from dreamkit import count, index_counts, printable

    with index_counts() as counts:
        dataset = cls(config)
    for note in dataset.notes:
        typer.echo(printable(f"note: {note}"))
    files = count(f"{counts.files:,}", "file")
    if not counts.files:
        state = "needs no index"
    elif not counts.computed:
        state = f"{files} already indexed"
    elif counts.computed < counts.files:
        state = f"indexed {counts.computed:,} of {files}, the others were already"
    else:
        state = f"indexed {files}"
    typer.echo(f"{printable(name)}: {count(f'{len(dataset):,}', 'document')}; {state}")
