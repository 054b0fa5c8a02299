"""The combined parts: a tiny one of each, by a name for the table, as sections of a recipe."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any, NamedTuple

from dreamkit.recipe.sections import plain
from dreamkit.registry.registry import Registry


class Combination(NamedTuple):
    """The names, in `parts`, of four parts."""

    vision_encoder: str
    language_model: str
    condition_projector: str
    image_decoder: str

    def __str__(self) -> str:
        return " x ".join(self)


Parts = dict[str, dict[str, dict[str, Any]]]  # key in a recipe's model -> name for the table -> section

LANGUAGE_MODELS = ("llama", "vicuna", "mistral", "qwen", "gemma", "phi", "causal-lm")
PROJECTORS = ("linear", "mlp", "resampler", "mapper", "encoder")


def parts(registry: Registry) -> Parts:
    """Return the parts of all combinations."""

    def section(kind: str, name: str) -> dict[str, Any]:
        cls: Any = registry.get(kind, name)
        return {"name": name, **plain(cls.tiny_config())}

    encoders = {name: section("vision_encoder", name) for name in ("clip", "siglip", "siglip2", "dinov2")}
    timm: Any = registry.get("vision_encoder", "timm")
    for name, config in (("timm (ViT)", timm.tiny_config()), ("timm (ConvNet)", timm.tiny_convnet_config())):
        encoders[name] = {"name": "timm", **plain(config)}
    noise = section("image_decoder", "stable-diffusion")
    schedule = {**noise["config"]["scheduler"], "prediction_type": "v_prediction"}
    velocity = {**noise, "config": {**noise["config"], "scheduler": schedule}}
    decoders = {"stable-diffusion (epsilon)": noise, "stable-diffusion (v)": velocity}
    return {
        "vision_encoder": encoders,
        "language_model": {name: section("language_model", name) for name in LANGUAGE_MODELS},
        "condition_projector": {name: section("projector", name) for name in PROJECTORS},
        "image_decoder": decoders
        | {name: section("image_decoder", name) for name in ("sdxl", "sana", "sd3")},
    }


def every(parts: Parts) -> list[Combination]:
    """Return all combinations."""
    return [Combination(*names) for names in product(*parts.values())]


def covering(parts: Parts) -> list[Combination]:
    """Return a few combinations, chosen greedily, that contain every pair of parts of different kinds."""
    missing = set().union(*map(_pairs, every(parts)))
    chosen = []
    while missing:
        best = max(every(parts), key=lambda combination: len(_pairs(combination) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(combination: Combination) -> set[tuple[tuple[int, str], tuple[int, str]]]:
    return set(combinations(enumerate(combination), 2))
