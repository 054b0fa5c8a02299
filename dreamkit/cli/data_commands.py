"""Commands about the data of a recipe. They load no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamkit.cli.shared import Overrides, RecipeName, echo, path_argument, print_pieces


def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    samples: Annotated[
        int, typer.Option(min=1, help="documents of each data set that are read, at even distances")
    ] = 100,
    read_all: Annotated[bool, typer.Option("--all", help="read every document")] = False,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE|PATH",
            help="held-out data besides the recipe's, none of whose images and texts the training data may have",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Check the data of a recipe.

    Opens every data set, reads a sample of its documents with their images, and converts them to tokens. Prints what
    the documents hold, and how they fill the rows of a batch. Then prints every problem: what `train` would refuse or
    skip, and the documents that are held out, too. Exits with code 2 if there is one. Loads no weights.

    Example: dreamkit data check digits/stage2 --samples 50
    """
    import json
    from dataclasses import asdict

    from dreamkit.errors import DreamkitError
    from dreamkit.inspection.data_check import check_data
    from dreamkit.inspection.problem_text import problem_text
    from dreamkit.inspection.report_tables import report_lines
    from dreamkit.progress.bars import Bar
    from dreamkit.recipe.loading import load_recipe
    from dreamkit.registry.registry import Registry

    registry = Registry.load()
    loaded = load_recipe(recipe, overrides or (), registry)
    with Bar("reading", "{task.fields[documents]}", transient=True) as bar:
        report = check_data(
            loaded,
            registry,
            samples=None if read_all else samples,
            held_out=held_out,
            on_progress=lambda documents, done, total: bar.move(done, total, documents=documents),
        )
    if as_json:
        echo(json.dumps(asdict(report), indent=2))
    else:
        print_pieces(report_lines(report))
    if report.problems:
        raise DreamkitError(problem_text(report.problems, report.unlisted, all_in="--json"))


def preview(
    recipe: RecipeName,
    overrides: Overrides = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=10_000, help="number of documents")] = 8,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="write the documents as JSON Lines, not as a page")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=path_argument,
            help="the file to write; default: preview.html, or with --jsonl standard output",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace FILE")] = False,
) -> None:
    """Show documents of a recipe's data as its model sees them.

    Writes a page with the first documents of a training, in their order: texts, by what is learned, special tokens,
    images with the tokens that they take, turns, and the rows of each batch. With --jsonl, the documents are JSON
    Lines that the data set `interleaved` reads. Loads no weights.

    Example: dreamkit data preview digits/stage2 -n 8 --out digits.html
    """
    import sys

    from dreamkit.errors import DreamkitError
    from dreamkit.inspection.preview import preview as make_page, preview_lines, unusable_line
    from dreamkit.recipe.loading import load_recipe
    from dreamkit.registry.registry import Registry
    from dreamkit.storage.writing import write_text

    file = Path("preview.html") if out is None and not jsonl else out
    if file is not None and file.exists() and not (overwrite and file.is_file()):
        fix = "replace it with --overwrite, or " if file.is_file() else ""
        raise DreamkitError(f"{file} exists; {fix}name another file with --out")
    registry = Registry.load()
    loaded = load_recipe(recipe, overrides or (), registry)
    if jsonl:
        lines = preview_lines(loaded, registry, number)
        if file is None:
            sys.stdout.writelines(lines)
            return
        write_text(file, "".join(lines))
    else:
        assert file is not None, "a page has a file"
        page, unusable = make_page(loaded, registry, number, title=recipe)
        write_text(file, page)
        if unusable:
            echo(unusable_line(unusable), err=True)
    echo(f"wrote {file}", err=True)
