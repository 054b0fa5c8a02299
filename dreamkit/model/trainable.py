"""The parameters that are trained, and the parts that their gradients pass through."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from dreamkit.errors import DreamkitError, did_you_mean
from dreamkit.model.adapters import is_adapter
from dreamkit.parts.part import Part
from dreamkit.parts.quantized import quantized_layers
from dreamkit.recipe.sections import TRAINABLE

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel

# the parts from which each part gets its input
INPUTS_FROM: Final[dict[str, tuple[str, ...]]] = {
    "vision_encoder": (),
    "visual_projector": ("vision_encoder",),
    "language_model": ("visual_projector", "dream_queries"),
    "condition_projector": ("language_model",),
    "pooled_projector": ("language_model",),
    "image_decoder": ("condition_projector", "pooled_projector"),
}


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


def set_trainable(model: DreamModel, names: Collection[str]) -> None:
    """Make parameters trainable, and freeze the others, as `DreamModel.set_trainable` describes."""
    require_trainable(names, model.parts())
    rows = model.language_model.added_token_parameters()
    if "new_tokens" in names and not rows:
        raise DreamkitError(
            "cannot train 'new_tokens': the language model's vocabulary already holds "
            f"{', '.join(model.token_ids)}; train 'language_model' or an adapter of it instead"
        )
    if "condition_projector" in names:
        names = {*names, "pooled_projector"}
    for part_name, part in model.parts().items():
        part.requires_grad_(False)
        for parameter in part.trainable_parameters() if part_name in names else ():
            parameter.requires_grad_(True)
        for name, parameter in part.named_parameters():
            if is_adapter(name):
                parameter.requires_grad_(True)
    for row in rows:
        row.requires_grad_("new_tokens" in names or "language_model" in names)
    model.dream_queries.requires_grad_("dream_queries" in names)
    model.changed |= {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def reached_parts(model: DreamModel) -> dict[str, Part]:
    """Return the parts that a gradient passes through, as `DreamModel.reached_parts` describes."""
    parts = model.parts()

    def is_reached(name: str) -> bool:
        if name == "dream_queries":
            return model.dream_queries.requires_grad
        own = name in parts and any(parameter.requires_grad for parameter in parts[name].parameters())
        return own or any(map(is_reached, INPUTS_FROM[name]))

    return {name: part for name, part in parts.items() if is_reached(name)}
