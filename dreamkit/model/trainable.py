"""Check of the names of parts to train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dreamkit.errors import DreamkitError, did_you_mean
from dreamkit.parts.part import Part
from dreamkit.parts.quantized import quantized_layers
from dreamkit.recipe.sections import TRAINABLE


def require_trainable(names: Iterable[str], parts: Mapping[str, Part]) -> None:
    """Check that each name is one of `TRAINABLE`, and that a part of this name has no quantized weights.

    Raises:
        DreamkitError: one is not.
    """
    for name in names:
        if name not in TRAINABLE:
            raise DreamkitError(f"unknown trainable part '{name}'; {did_you_mean(name, TRAINABLE)}")
        if name in parts and any(quantized_layers(parts[name])):
            raise DreamkitError(
                f"cannot train '{name}', whose weights are quantized; train an adapter of it, or remove quantize"
            )
