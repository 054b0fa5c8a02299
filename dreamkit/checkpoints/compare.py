"""Comparison of a checkpoint's manifest with a model, a recipe and sources as they are now."""

from __future__ import annotations

from pathlib import Path

from dreamkit.checkpoints.manifest import Manifest, SourceRecord
from dreamkit.errors import CheckpointError, SourceError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.storage.sources import fingerprint


def compare_tokens(folder: Path, manifest: Manifest, model: DreamModel) -> None:
    if manifest.tokens != model.token_ids:
        raise CheckpointError(
            f"{folder}: its special tokens are {manifest.tokens}, but the model's are {model.token_ids}; "
            "give model.special_tokens the same names, and model.language_model the same tokenizer"
        )


def compare_adapters(folder: Path, manifest: Manifest, recipe: Recipe) -> None:
    """Compares the settings of adapters, some of which their tensors do not tell."""
    ours, theirs = (
        {adapter["target"]: adapter for adapter in sections["model"]["adapters"]}
        for sections in (recipe.to_dict(), manifest.recipe)
    )
    for target in ours.keys() & theirs.keys():
        for key in ("rank", "alpha", "modules", "use_dora", "use_rslora"):
            here, there = ours[target][key], theirs[target][key]
            if here != there:
                raise CheckpointError(
                    f"{folder}: its adapter of {target} has {key} {there}, but the recipe's has {here}, with which its "
                    "weights would not fit, or count otherwise; give both the same"
                )


def compare_source(folder: Path, part: str, source: SourceRecord, name: str) -> None:
    """Compares the files of `name` as they are now with those that a part of the checkpoint stands on."""
    try:
        now = fingerprint(name)
    except SourceError as error:
        raise CheckpointError(
            f"{folder}: its {part} stands on '{name}', which cannot be read: {error}"
        ) from error
    then = source["files"]
    differing = sorted(file for file in now.keys() | then.keys() if now.get(file) != then.get(file))
    if differing:
        raise CheckpointError(
            f"{folder}: its {part} stands on '{source['name']}' as it was when the checkpoint was written, but in "
            f"'{name}' these differ now: {', '.join(differing)}; restore them, or train again"
        )
