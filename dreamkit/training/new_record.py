"""The record of a run that starts."""

from __future__ import annotations

import platform

import torch

from dreamkit.checkpoints.components import component_records
from dreamkit.distributed import local_processes, world_size
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.runs.record import FORMAT, RunRecord, installed_versions, new_start


def new_record(
    recipe: Recipe, registry: Registry | None, device: torch.device, *, global_batch: int, step: int
) -> RunRecord:
    """Return the record of a run that starts on `device` after `step` finished steps."""
    components = {} if registry is None else component_records(recipe, registry)
    return RunRecord(
        FORMAT,
        recipe.train.seed,
        recipe.train.steps,
        global_batch,
        world_size(),
        max(1, world_size() // local_processes()),
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        installed_versions((each["distribution"], each["version"]) for each in components.values()),
        [new_start(step)],
        "",
        recipe.to_dict(),
    )
