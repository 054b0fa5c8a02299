"""A proposal as a recipe to merge on top, and the command that trains with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml

from dreamkit.plan.proposal import Proposal
from dreamkit.plan.sizes import format_bytes

MARK: Final = "A proposal of `dreamkit plan`"  # begins each overlay, so that a later one may replace it

RENDEZVOUS: Final = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500")


def overlay(proposal: Proposal, name: str, overrides: Sequence[str], file: Path) -> str:
    """Return the text of a recipe `file` with the changes of the proposal for the recipe `name` with `overrides`."""
    sections: dict[str, Any] = {}
    for key, value in proposal.changes.items():
        if value is None:  # a key of the pair that global_batch replaces
            continue
        *path, last = key.split(".")
        section = sections
        for step in path:
            section = section.setdefault(step, {})
        section[last] = value
    planned, allowed = format_bytes(proposal.plan.memory.peak), format_bytes(proposal.usable)
    versions = f"dreamkit {version('dreamkit-core')} and torch {version('torch')}"
    header = (
        f"{MARK} for {name} on {proposal.where}.\n"
        f"Its planned peak is {planned} of {allowed} that a plan may take, by {versions}.\n"
        f"{train_command(proposal, name, overrides, file)}"
    )
    comment = "".join(f"# {line}\n" for line in header.splitlines())  # a setting may have several lines
    return comment + yaml.safe_dump(sections, sort_keys=False)


def train_command(proposal: Proposal, name: str, overrides: Sequence[str], file: Path) -> str:
    """Return the command that trains the recipe `name` with `overrides` and the overlay `file` on top."""
    recipes = [each for each in overrides if "=" not in each]
    settings = [each for each in overrides if "=" in each]
    train = ["train", name, *recipes, str(file), *settings, "--out", f"runs/{Path(name).stem}"]
    if proposal.devices == 1:
        return shlex.join(["dreamkit", *train])
    torchrun = ["torchrun"]
    if proposal.machines > 1:
        torchrun += ["--nnodes", str(proposal.machines), *RENDEZVOUS]
    torchrun += ["--nproc-per-node", str(proposal.devices // proposal.machines), "-m", "dreamkit"]
    return shlex.join([*torchrun, *train])
