"""Commands that only read: what is installed, a recipe, a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from dreamkit.cli.shared import (
    Overrides,
    RecipeName,
    console,
    echo,
    path_argument,
    print_by_origin,
    print_lines,
    print_pieces,
)


def plugins() -> None:
    """List components and broken plug-ins.

    Lists everything that works, then each broken plug-in, and each that requires another version of dreamkit; exits
    with code 1 if there is one. To load only some plug-ins, set the environment variable DREAMKIT_PLUGINS to a
    comma-separated list of entry-point names. "core" names dreamkit's own components.

    Example: dreamkit plugins
    """
    from dreamkit.registry.kinds import KINDS
    from dreamkit.registry.registry import Registry

    registry = Registry.load()
    print_by_origin(
        ("kind", "name", "distribution", "summary"),
        [
            (kind, name, registered.origin, registered.component.summary)
            for kind in KINDS
            for name, registered in sorted(registry.components(kind).items())
        ],
    )
    out = console()
    for problem in registry.problems:
        kind, style = ("note", "yellow") if problem.is_note else ("problem", "red")
        out.print(f"{kind}: {problem}", style=style, soft_wrap=True)
    if not all(problem.is_note for problem in registry.problems):
        raise typer.Exit(1)


def recipes(
    paths: Annotated[
        bool, typer.Option("--paths", help="print the file of each recipe instead of its purpose")
    ] = False,
) -> None:
    """List the shipped recipes.

    Prints the purpose of each recipe, which is the first sentence of its header.

    Example: dreamkit recipes --paths
    """
    from dreamkit.registry.registry import Registry

    shipped = sorted(Registry.load().shipped_recipes().items())
    if paths:
        print_lines(("recipe", "file"), [(name, str(recipe.path)) for name, recipe in shipped])
    else:
        print_by_origin(
            ("recipe", "distribution", "summary"),
            [(name, recipe.origin, recipe.summary) for name, recipe in shipped],
        )


def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe without loading any weights.

    Finds all unknown keys, wrong types, unknown components and parts that do not fit each other. Prints every problem
    and exits with code 2. Without problems, prints the parts and their sizes. Opens the data sets and the first
    document of each; what `train` would refuse of these and of `init` is printed as a note.

    Example: dreamkit check digits/stage1 train.steps=100
    """
    from dreamkit.build.fit import fit
    from dreamkit.build.notes import language_notes, recipe_notes
    from dreamkit.cache.recipe_check import cache_notes, cache_problems
    from dreamkit.checkpoints.inputs import open_inputs
    from dreamkit.errors import RecipeError
    from dreamkit.recipe.loading import draft_recipe
    from dreamkit.registry.registry import Registry

    registry = Registry.load()
    draft, problems = draft_recipe(recipe, overrides or (), registry)
    fitted = fit(draft, registry) if draft is not None else None
    problems += [*fitted.problems, *cache_problems(fitted)] if fitted is not None else []
    if problems:
        raise RecipeError(problems)
    assert fitted is not None and draft is not None, "a recipe without problems is complete"
    table = Table("part", "component", "input -> output", box=None, pad_edge=False)
    for row in fitted.summary():
        table.add_row(*row)
    out = console()
    out.print(table)
    out.print("shapes are tokens x width; px: pixels of a side; any: any number of tokens", soft_wrap=True)
    language = fitted.language_model
    inputs = open_inputs(draft, registry, with_held_out=True, language=language)
    refused = ["\n  ".join(["note: train would refuse these inputs:", *map(str, inputs.problems)])]
    for note in [
        *recipe_notes(draft),
        *language_notes(draft, language, inputs.problems),
        *(refused if inputs.problems else ()),
        *inputs.notes,
        *cache_notes(draft, inputs.datasets),
    ]:
        out.print(note, soft_wrap=True)


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="the memory of a device, such as 80GiB")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="plan the recipe as it is, in this number of processes, one device each (default: 1)",
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="propose settings that fit into the --memory of each of this number of devices, in place of the "
            "recipe's: sharding, micro batch, gradient checkpointing, precision, quantization, offloading",
        ),
    ] = None,
    machines: Annotated[
        int, typer.Option(min=1, help="number of machines that share the processes or devices evenly")
    ] = 1,
    images: Annotated[
        int | None, typer.Option(min=0, help="images in each document, drawn and read back (default: 1)")
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="plan the first batches of the recipe's data, not full rows, and print the one with the highest peak",
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=path_argument,
            help="with --devices: write the proposal as a recipe to merge on top",
        ),
    ] = None,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate",
            help="plan the memory of `dreamkit generate` in the place of a training, for one document",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers as JSON")] = False,
) -> None:
    """Print shapes, parameters, memory and FLOPs, or propose settings that fit.

    Prints the parts with their shapes and parameters, the memory of a device, and the floating-point operations of a
    training step. Loads no weights. If the memory exceeds --memory, prints what to change and exits with code 1.

    With --devices, proposes settings with which the training fits into that many devices, with the arithmetic. If
    nothing fits, prints what is left and exits with code 2. Settings that you pass stay.

    Example: dreamkit plan digits/stage2 train.global_batch=64 --memory 8GiB

    Example: dreamkit plan digits/stage2 --generate
    """
    import json
    from dataclasses import asdict

    from dreamkit.cache.recipe_check import cache_notes
    from dreamkit.checkpoints.inputs import open_inputs
    from dreamkit.cli.proposing import plan_generation, propose_settings
    from dreamkit.errors import DreamkitError
    from dreamkit.plan.advice import memory_advice
    from dreamkit.plan.plan import plan as make_plan, plan_data
    from dreamkit.plan.sizes import format_bytes, parse_bytes
    from dreamkit.plan.tables import report
    from dreamkit.recipe.loading import load_recipe
    from dreamkit.registry.registry import Registry

    if generate:
        options = {
            "processes": processes,
            "devices": devices,
            "images": images,
            "batches": batches,
            "write": write,
        }
        plan_generation(recipe, overrides or (), memory, options, as_json)
        return
    if devices is not None:
        if given := [
            f"--{name}" for name, value in (("processes", processes), ("batches", batches)) if value
        ]:
            raise DreamkitError(
                f"expected --devices alone, got {' and '.join(given)}, too; --devices proposes settings; to "
                "plan the recipe as it is, leave it out"
            )
        propose_settings(
            recipe,
            overrides or (),
            memory,
            devices,
            machines,
            1 if images is None else images,
            write,
            as_json,
        )
        return
    if write is not None:
        raise DreamkitError("expected --devices with --write: the number of devices to propose settings for")
    processes = processes or 1
    limit = None if memory is None else parse_bytes(memory)
    registry = Registry.load()
    loaded = load_recipe(recipe, overrides or (), registry)
    if batches is None:
        images = 1 if images is None else images
        planned = make_plan(loaded, registry, processes=processes, machines=machines, images=images)
    elif images is not None:
        raise DreamkitError(
            "expected --images or --batches, got both; documents of the recipe's data have their own images, so leave "
            "out --images"
        )
    else:
        opened = open_inputs(loaded, registry, with_init=False).require_datasets()
        planned = plan_data(loaded, registry, opened, batches, processes=processes, machines=machines)
    if as_json:
        echo(json.dumps({**asdict(planned), "peak": planned.memory.peak}, indent=2))
    else:
        print_pieces(report(planned, loaded))
        datasets = () if loaded.train.cache is None else open_inputs(loaded, registry).datasets
        print_pieces(cache_notes(loaded, datasets))
    if limit is None:
        return
    problems = memory_advice(planned, loaded, limit)
    if problems:
        echo("\n".join(problems), err=as_json)
        raise typer.Exit(1)
    fits = f"fits into {format_bytes(limit)}, {format_bytes(limit - planned.memory.peak)} to spare"
    echo(fits, err=as_json)


def inspect(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", parser=path_argument, help="the folder of a checkpoint or cache"),
    ],
) -> None:
    """Verify and show a checkpoint or cache.

    Verifies every file, then shows the contents.

    Example: dreamkit inspect run1/checkpoint
    """
    import yaml
    from rich.filesize import decimal

    from dreamkit.cache.manifest import CacheManifest
    from dreamkit.checkpoints.manifest import Manifest, adapter_file, weights_file
    from dreamkit.errors import count

    if (folder / CacheManifest.FILE).is_file():
        _inspect_cache(folder)
        return
    manifest = Manifest.read(folder)
    out = console()
    out.print(f"format {manifest.format}, written by dreamkit {manifest.dreamkit}; every file is intact\n")
    if manifest.is_sliced:
        total = sum(manifest.files[name]["size"] for name in manifest.slice_files)
        out.print(f"weights in slices of {count(manifest.processes, 'process')}, {decimal(total)}\n")
    table = Table("part", "component", "from", "tensors", "size", "source", box=None, pad_edge=False)
    for part in dict.fromkeys([*manifest.components, *manifest.parts]):
        name = origin = source = ""
        if part in manifest.components:
            component = manifest.components[part]
            name, origin = component["name"], f"{component['distribution']} {component['version']}"
        if part in manifest.sources:
            source = manifest.sources[part]["name"]
        size = "" if manifest.is_sliced else decimal(0)
        if part in manifest.parts and not manifest.is_sliced:
            size = decimal(manifest.files[weights_file(part)]["size"])
        table.add_row(part, name, origin, str(manifest.parts.get(part, 0)), size, source)
        if part in manifest.adapters:
            size = "" if manifest.is_sliced else decimal(manifest.files[adapter_file(part)]["size"])
            table.add_row("  adapter", "", "", str(manifest.adapters[part]), size, "")
    out.print(table)
    out.print(f"\ntokens: {manifest.tokens}\n\nrecipe:", markup=False)
    echo(yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True))


def _inspect_cache(folder: Path) -> None:
    from rich.filesize import decimal

    from dreamkit.cache.manifest import PART_OF, CacheManifest

    manifest = CacheManifest.read(folder)
    manifest.verify(folder, read=True)
    out = console()
    out.print(f"format {manifest.format}, written by dreamkit {manifest.dreamkit}; every file is intact\n")
    table = Table("table", "images", "row", "size", "part", "precision", box=None, pad_edge=False)
    for name, record in manifest.tables.items():
        row = [f"{key} {tensor['dtype']} {tensor['shape']}" for key, tensor in record["tensors"].items()]
        part = f"{PART_OF[name]} {record['identity']['component']}"
        size, precision = decimal(manifest.table_bytes(name)), record["identity"]["precision"]
        table.add_row(name, f"{record['images']:,}", ", ".join(row), size, part, precision)
    out.print(table)
