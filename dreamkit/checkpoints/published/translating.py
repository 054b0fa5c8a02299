"""Translation of a published checkpoint's config to a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamkit.checkpoints.published.layout import HEAD, QUERIES, VISION, Drawing
from dreamkit.checkpoints.published.reading import under
from dreamkit.errors import CheckpointError, describe_value


def sections(
    config: dict[str, Any],
    states: Mapping[str, dict[str, Tensor]],
    *,
    folders: Mapping[str, Path] | None = None,
    configs: Mapping[str, dict[str, Any]] | None = None,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """Return the recipe of the model; its three big parts are read from `folders` or configured by `configs`."""
    published = config["plugins_init_kwargs"]
    drawing = Drawing.of(published)

    def source(part: str) -> dict[str, Any]:
        return {"pretrained": str(folders[part])} if folders else {"config": (configs or {})[part]}

    language_model = {"name": "vicuna", **source("language_model")}
    if tokenizer is not None:
        language_model["tokenizer"] = str(tokenizer)
    head = {"image_size": published[HEAD].get("resolution"), "snr_gamma": published[HEAD].get("snr_gamma")}
    return {
        "model": {
            "language_model": language_model,
            "vision_encoder": {
                "name": "clip",
                "layer": published[VISION].get("select_layer", -2),
                **source("vision_encoder"),
            },
            **{
                part: _projector(published[plugin], _is_biased(under(states[plugin], prefix)))
                for part, (plugin, prefix) in drawing.projectors.items()
            },
            "image_decoder": {"name": drawing.decoder, **head, **source("image_decoder")},
            "dream_queries": published[QUERIES].get("num_dream_queries", 64),
            "special_tokens": drawing.special_tokens,
        },
        "loss": {
            "lm": config.get("loss_weight_lm", 1.0),
            "denoising": config.get("loss_weight_vm", 10.0),
            "condition_drop": published[HEAD].get("drop_prob") or 0.0,
        },
        # the published code draws with 50 steps of DDPM, whichever scheduler the decoder's folder names
        "generation": {"scheduler": "ddpm", "steps": 50},
    }


def _projector(published: Mapping[str, Any], bias: bool) -> dict[str, Any]:
    kind = published.get("projector_type", "linear")
    if kind == "linear":
        return {"name": "linear", "bias": bias}
    if kind == "mlp":
        return {"name": "mlp", "depth": published.get("projector_depth", 1), "bias": bias}
    raise CheckpointError(f"expected projector_type linear or mlp, got {describe_value(kind)}")


def _is_biased(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("bias") for name in state)
