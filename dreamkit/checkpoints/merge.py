"""Merging of a checkpoint's adapters into its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.save import write_checkpoint
from dreamkit.errors import CheckpointError, DreamkitError
from dreamkit.model.adapters import merge
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import atomic_folder, in_use_reason


def merge_adapters(folder: Path, out: Path, registry: Registry) -> list[str]:
    """Write the checkpoint in `folder` to `out` with its adapters merged into the adapted layers.

    Weights of quantized parts are those of their sources, and the merged checkpoint is not quantized.

    Return the names of the adapted parts.

    Raises:
        CheckpointError: `folder` has no adapters or is not a valid checkpoint, `out` is not a new folder, or an adapter
            cannot be merged. Then nothing is written.
        OutputError: `out` cannot be written, or another command is writing it.
    """
    out = out.absolute()
    with atomic_folder(out) as partial:
        return _merge_into(partial, folder, out, registry)


def _merge_into(partial: Path, folder: Path, out: Path, registry: Registry) -> list[str]:
    """Write the merged checkpoint into the unfinished folder of `out`."""
    if reason := in_use_reason(out):
        raise CheckpointError(f"{out} {reason}; name a new folder")
    sections = Manifest.read(folder, verify=False).recipe.get("model")
    if isinstance(sections, dict) and not sections.get("adapters"):
        raise CheckpointError(f"{folder}: it has no adapters to merge; use it as it is")
    model, _ = load_checkpoint(folder, registry, quantize=False)
    recipe = model.recipe
    assert recipe is not None, "a loaded checkpoint has its recipe"
    targets: list[str] = [adapter.target for adapter in recipe.model.adapters]
    for target in targets:
        try:
            merged = merge(model.parts()[target])
        except DreamkitError as error:
            raise CheckpointError(f"{folder}: {target}: {error}") from error
        model.changed |= {f"{target}.{name}" for name in merged}
    model.recipe = replace(recipe, model=replace(recipe.model, adapters=()))
    write_checkpoint(model, partial, registry=registry)
    return targets
