"""The half of `dreamkit plan` that proposes settings for given devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dreamkit.cli.shared import console, echo
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
    out = console()
    for piece in report_proposal(proposal):
        out.print(piece, soft_wrap=isinstance(piece, str))
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
