"""The recipe of a run, from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import TrainingError
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.runs.run_paths import CHECKPOINT, LOG, resume_points


def resumed_recipe(out: Path, settings: Sequence[str], registry: Registry) -> Recipe:
    """Return the recipe of the run in `out`, with `key=value` settings, to continue that run.

    Raises:
        TrainingError: `out` has no run.
        CheckpointError: its last resume point is damaged.
        RecipeError: every problem of the settings at once.
    """
    folder = next(reversed(resume_points(out)), out / CHECKPOINT)
    if not (folder / Manifest.FILE).is_file():
        if (out / Manifest.FILE).is_file():
            instead = "name the --out folder of its run, which is above it"
        elif (out / LOG).is_file():
            instead = (
                "its run has written none (train.save_every sets the steps between them); wait for one if it goes on, "
                "or remove the folder and train with the recipe, without --resume"
            )
        else:
            instead = "train with a recipe and without --resume into a new folder"
        raise TrainingError(
            f"expected the folder of a run to resume, got {out} without a resume point; {instead}"
        )
    manifest = Manifest.read(folder, verify=False)
    return recipe_from_dict(manifest.recipe, registry, str(folder / Manifest.FILE), settings)
