"""More of `dreamkit plan` than a plan of the recipe as it is: proposals for devices, and the memory of generation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from dreamkit.cli.shared import echo, print_pieces
from dreamkit.errors import DreamkitError


def propose_settings(
    recipe: str,
    overrides: Sequence[str],
    memory: str | None,
    devices: int,
    machines: int,
    images: int,
    file: Path | None,
    as_json: bool,
) -> None:
    """Print settings with which `recipe` fits into the memory of the devices, and write them into `file`.

    Raises:
        DreamkitError: nothing fits, an option is missing, or `file` cannot be written.
    """
    from dreamkit.plan.overlay import overlay, train_command
    from dreamkit.plan.proposal import propose
    from dreamkit.plan.proposal_tables import report_proposal
    from dreamkit.plan.sizes import parse_bytes
    from dreamkit.plan.trials import Settings
    from dreamkit.progress.bars import Bar
    from dreamkit.recipe.loading import load_recipe
    from dreamkit.registry.registry import Registry
    from dreamkit.storage.writing import write_text

    if memory is None:
        raise DreamkitError(
            "expected --memory with --devices: the memory of one device, such as --memory 80GiB"
        )
    if file is not None:
        _require_replaceable(file)
    limit = parse_bytes(memory)
    registry = Registry.load()
    loaded = load_recipe(recipe, overrides, registry)
    planned = 0

    with Bar("planning", "{task.fields[rows]}", transient=True) as bar:

        def show(settings: Settings) -> None:
            nonlocal planned
            bar.move(planned, rows=f"micro_batch {settings['train.micro_batch']}")
            planned += 1

        proposal = propose(
            loaded, registry, limit, devices=devices, machines=machines, images=images, on_plan=show
        )
    name = file or Path("fit.yaml")
    text = overlay(proposal, recipe, overrides, name)
    command = train_command(proposal, recipe, overrides, name)
    if file is not None:
        write_text(file, text)
    if as_json:
        numbers = asdict(proposal.plan) | {"peak": proposal.plan.memory.peak}
        echo(
            json.dumps(
                {"settings": proposal.changes, "usable": proposal.usable, "command": command, **numbers},
                indent=2,
            )
        )
        return
    print_pieces(report_proposal(proposal))
    echo(f"\n{text}")
    if file is None:
        echo("write these settings with --write fit.yaml, then train with")
    else:
        echo(f"{file} is written; train with")
    echo(f"  {command}")


def _require_replaceable(file: Path) -> None:
    """Check that `file` can be named in a command as a recipe, and is none that somebody wrote."""
    from dreamkit.plan.overlay import MARK
    from dreamkit.recipe.files import SUFFIXES

    if file.suffix not in SUFFIXES or "=" in str(file):
        raise DreamkitError(
            f"expected a --write file that ends in .yaml and has no =, got '{file}'; rename it"
        )
    try:
        is_ours = file.read_bytes().startswith(f"# {MARK}".encode())
    except FileNotFoundError:
        return
    except OSError as error:
        raise DreamkitError(
            f"cannot read '{file}': {error.strerror}; name another file with --write"
        ) from error
    if not is_ours:
        raise DreamkitError(
            f"'{file}' exists and is no proposal of `dreamkit plan`; name another file with --write"
        )


def plan_generation(
    recipe: str,
    overrides: Sequence[str],
    memory: str | None,
    options: Mapping[str, object],
    as_json: bool,
) -> None:
    """Print the memory of generation. Exit with code 1 if no dtype fits into `memory` (such as 80GiB), even offloaded.

    Raises:
        DreamkitError: `options`, which are about training, has a value.
    """
    from dreamkit.plan.generating import DTYPES, generation_memory
    from dreamkit.plan.generation_tables import generation_numbers, report_generation
    from dreamkit.plan.sizes import format_bytes, parse_bytes
    from dreamkit.recipe.loading import load_recipe
    from dreamkit.registry.registry import Registry

    if given := [f"--{name}" for name, value in options.items() if value is not None]:
        raise DreamkitError(
            f"expected --generate alone, got {' and '.join(given)}, too; that is about training, so leave it out"
        )
    limit = None if memory is None else parse_bytes(memory)
    registry = Registry.load()
    loaded = load_recipe(recipe, overrides, registry)
    planned = {dtype: generation_memory(loaded, registry, dtype) for dtype in DTYPES}
    if as_json:
        echo(json.dumps(generation_numbers(planned), indent=2))
    else:
        print_pieces(report_generation(planned))
    if limit is None:
        return
    peaks = {f"--dtype {dtype}": each.peak for dtype, each in planned.items()}
    peaks |= {f"--dtype {dtype} --offload": each.offloaded_peak for dtype, each in planned.items()}
    fitting = [name for name, peak in peaks.items() if peak <= limit]
    if fitting:
        echo(f"fits into {format_bytes(limit)}: {', '.join(fitting)}", err=as_json)
        return
    least = min(peaks.values())
    echo(
        f"{format_bytes(least)}, the least, do not fit into {format_bytes(limit)}; choose smaller parts",
        err=as_json,
    )
    raise typer.Exit(1)
