"""Comparison of a checkpoint's manifest with a model, a recipe and the present files of sources."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dreamkit.checkpoints.manifest import Manifest, SourceRecord, component_sections
from dreamkit.errors import CheckpointError, SourceError, excerpt, printable
from dreamkit.recipe.loading import adapters_from_dict
from dreamkit.recipe.sections import PARTS, Recipe
from dreamkit.storage.paths import shown_path
from dreamkit.storage.sources import fingerprint

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel


def compare_components(folder: Path, manifest: Manifest, recipe: Recipe | None) -> None:
    """Compare the names of the parts; without a recipe, the model has none."""
    plain = {} if recipe is None else recipe.to_dict()
    names = {key: name for key, _, name in component_sections(plain)}
    for key in PARTS:
        actual = names.get(key, "none")
        expected = manifest.components[key]["name"] if key in manifest.components else "none"
        if actual != expected:
            raise CheckpointError(
                f"{folder}: expected {key} '{excerpt(expected)}', got '{actual}' in the recipe; use the same part or "
                "start from another checkpoint"
            )


def compare_tokens(folder: Path, manifest: Manifest, model: DreamModel) -> None:
    """Compare the special tokens and their ids. The message has the first ten that differ."""
    expected, actual = set(manifest.tokens.items()), set(model.token_ids.items())
    if expected != actual:
        raise CheckpointError(
            f"{folder}: expected the special tokens {_shown(expected - actual)}, got {_shown(actual - expected)}; use "
            "the same model.special_tokens and the same tokenizer of model.language_model"
        )


def _shown(token_ids: Iterable[tuple[str, int]]) -> str:
    listed = sorted(token_ids)
    return "{" + ", ".join(f"'{excerpt(token)}': {number}" for token, number in listed[:10]) + "}"


def compare_adapters(folder: Path, manifest: Manifest, recipe: Recipe) -> None:
    """Compare the settings of adapters, some of which do not show in the shapes of tensors."""
    stored = adapters_from_dict(manifest.recipe, str(folder / Manifest.FILE))
    actual, expected = ({a.target: a for a in adapters} for adapters in (recipe.model.adapters, stored))
    for target in actual.keys() & expected.keys():
        for key in ("rank", "alpha", "modules", "use_dora", "use_rslora"):
            before, now = getattr(expected[target], key), getattr(actual[target], key)
            if before != now:
                raise CheckpointError(
                    f"{folder}: expected {key} {excerpt(str(before))} of the adapter of {target}, got "
                    f"{excerpt(str(now))} in the recipe; use the same value"
                )


def compare_source(folder: Path, part: str, source: SourceRecord, name: str) -> None:
    """Compare the present files of the source `name` with the hashes in the checkpoint."""
    try:
        now = fingerprint(name)
    except SourceError as error:
        shown = shown_path(name)
        raise CheckpointError(
            f"{folder}: cannot read '{shown}', the source of its {part}: {error}"
        ) from error
    before = source["files"]
    differing = sorted(file for file in now.keys() | before.keys() if now.get(file) != before.get(file))
    if differing:
        raise CheckpointError(
            f"{folder}: the source of its {part} was '{shown_path(source['name'])}', but in '{name}' these files "
            f"differ: {', '.join(map(printable, differing))}; restore them or train again"
        )
