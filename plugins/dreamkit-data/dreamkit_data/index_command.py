"""The command `dreamkit data index`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from dreamkit import Dataset, Location, Registry


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
    recipe that has them. Prints an estimate after the first file, then the number of samples, and what is left out.

    Example: dreamkit data index digits/stage2

    Example: dreamkit data index '/data/laion/{00000..01000}.tar' --index /data/laion-index
    """
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
        _index_patterns([location(pattern) for pattern in patterns], kind or "tars", folder, registry)
    for section in sections:
        _print_result(section.name, registry.get("dataset", section.name)(section.config))


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


def _index_patterns(paths: list[Location], kind: str, folder: str | None, registry: Registry) -> None:
    from dataclasses import replace
    from pathlib import Path

    from dreamkit_data.mmc4_lines import SUFFIXES
    from dreamkit_data.patterns import matching_files

    cls = registry.get("dataset", kind)
    config = cls.Config(path=paths, index=None if folder is None else Path(folder))
    files = matching_files(paths, (".tar", *SUFFIXES) if kind == "mmc4" else (".tar",))
    if len(files) > 1:
        _print_estimate(files, cls, replace(config, path=[files[0]]))
    _print_result(kind, cls(config))


def _print_estimate(files: list[Location], cls: type[Dataset], config: object) -> None:
    """Index the first file, and print what the others will take if they are alike."""
    import os

    from rich.filesize import decimal

    from dreamkit import DocumentError, count
    from dreamkit_data.buckets import is_remote, statuses
    from dreamkit_data.tar_samples import STATUS_REQUESTS

    try:
        first = cls(config)
    except DocumentError:  # it may have no samples; the errors of all files come later
        return
    (cost,) = (facts["cost"] for facts in first.facts)  # type: ignore[attr-defined]
    objects = [file for file in files if is_remote(file)]
    remote = dict(zip(objects, statuses(objects), strict=True))
    sizes = [remote[file].size if is_remote(file) else os.path.getsize(file) for file in files]
    scale = sum(sizes) / max(1, sizes[0])
    processes = min(len(files), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    seconds, reads, size = (cost[key] * scale for key in ("seconds", "reads", "bytes"))
    samples = count(f"{len(first) * scale:,.0f}", "sample")
    reads += STATUS_REQUESTS * len(remote)
    kind = "request" if remote else "read"
    typer.echo(
        f"{count(f'{len(files):,}', 'file')}, {decimal(sum(sizes))}; about {samples}, as the "
        f"first file shows; to index all: {count(f'{reads:,.0f}', kind)} of {decimal(int(size))}, "
        f"{seconds / processes:,.1f} s in {count(processes, 'process')}"
    )


def _print_result(name: str, dataset: Dataset) -> None:
    from dreamkit import count, printable

    for note in dataset.notes:
        typer.echo(printable(f"note: {note}"))
    typer.echo(f"{printable(name)}: {count(f'{len(dataset):,}', 'document')}")
