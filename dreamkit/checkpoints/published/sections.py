"""What the config of a published checkpoint says, as folders that libraries read, and as a recipe."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from dreamkit.checkpoints.published.files import component, copy, language_weights, read_json, under, write
from dreamkit.errors import CheckpointError

VISION, QUERIES, HEAD = "clip_vision_embedding", "dream_embedding", "stable_diffusion_head"
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PROJECTOR = "projector.projector."  # of both projectors, in the state dicts of their plug-ins


@dataclass(frozen=True)
class Drawing:
    """What of a published checkpoint depends on the decoder it draws with.

    `projectors` has, by part, the plug-in that holds it and how its tensors start; `head` is the head's file.
    """

    decoder: str
    head: str
    projectors: dict[str, tuple[str, str]]
    special_tokens: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(published: Mapping[str, Any]) -> Drawing:
        """That of the head whose class is named, which decides nothing else."""
        return SDXL if str(published[HEAD].get("_target_")).endswith("XLHead") else SD

    def files(self) -> dict[str, str]:
        """The files of the two plug-ins with models, by plug-in."""
        return {VISION: f"{VISION}.bin", HEAD: self.head}


SD = Drawing(
    decoder="stable-diffusion",
    head=f"{HEAD}.bin",
    projectors={"visual_projector": (VISION, PROJECTOR), "condition_projector": (HEAD, PROJECTOR)},
)
SDXL = Drawing(
    decoder="sdxl",
    head="stable_diffusion_xl_head.bin",
    projectors={**SD.projectors, "pooled_projector": (HEAD, f"global_{PROJECTOR}")},
    special_tokens={"dream_patch": "<dream_patch>"},
)


def unpack(
    folder: Path, config: dict[str, Any], states: Mapping[str, dict[str, Tensor]], scratch: Path
) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Lays each part out as a folder of its library; returns these folders, and the configs in them."""
    published = config["plugins_init_kwargs"]
    folders = {name: scratch / name for name in ("language_model", "vision_encoder", "image_decoder")}

    weights = {name: t for name, t in language_weights(folder) if not name.endswith("rotary_emb.inv_freq")}
    llama = _current("llama", config)
    write(folders["language_model"], llama | {"model_type": "llama"}, weights)
    copy(folder, folders["language_model"], TOKENIZER_FILES)

    clip_files = ["config.json", "preprocessor_config.json"]
    clip_folder = component(published[VISION]["clip_vision_model_name_or_path"], folder, clip_files)
    clip = read_json(clip_folder / "config.json")
    clip = _current("clip_vision_model", clip.get("vision_config", clip))
    weights = under(states[VISION], "clip_vision_model.")
    write(folders["vision_encoder"], clip | {"model_type": "clip_vision_model"}, weights)
    copy(clip_folder, folders["vision_encoder"], ["preprocessor_config.json"])

    part_files = ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
    decoder_folder = component(published[HEAD]["diffusion_name_or_path"], folder, part_files)
    decoder = {file.split("/")[0]: read_json(decoder_folder / file) for file in part_files}
    for part in ("unet", "vae"):
        part_weights = under(states[HEAD], f"{part}.")
        write(
            folders["image_decoder"] / part,
            decoder[part],
            part_weights,
            "diffusion_pytorch_model.safetensors",
        )
    (folders["image_decoder"] / "scheduler").mkdir()
    (folders["image_decoder"] / part_files[2]).write_text(json.dumps(decoder["scheduler"]))

    bare = {name: {k: v for k, v in part.items() if not k.startswith("_")} for name, part in decoder.items()}
    configs = {"language_model": llama, "vision_encoder": clip, "image_decoder": bare}
    return folders, configs


def sections(
    config: dict[str, Any],
    states: Mapping[str, dict[str, Tensor]],
    *,
    folders: Mapping[str, Path] | None = None,
    configs: Mapping[str, dict[str, Any]] | None = None,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """The recipe of the model, its three big parts read from `folders` or described by `configs`."""
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
            "vm": config.get("loss_weight_vm", 10.0),
            "condition_drop": published[HEAD].get("drop_prob") or 0.0,
        },
        # The published code samples with DDPM, whichever scheduler the decoder's folder names.
        "generation": {"scheduler": "ddpm"},
    }


def _projector(published: Mapping[str, Any], bias: bool) -> dict[str, Any]:
    kind = published.get("projector_type", "linear")
    if kind == "linear":
        return {"name": "linear", "bias": bias}
    if kind == "mlp":
        return {"name": "mlp", "depth": published.get("projector_depth", 1), "bias": bias}
    raise CheckpointError(f"projector_type '{kind}', but only linear and mlp can be imported")


def _is_biased(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("bias") for name in state)


def _current(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What of an old config the library's present class has, under its present names, where it is not the default."""
    known = AutoConfig.for_model(model_type).to_dict().keys() | {"rope_theta", "rope_scaling"}
    general = {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
    kept = {name: value for name, value in config.items() if name in known - general}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old names, which the library translates
        current = AutoConfig.for_model(model_type, **kept).to_diff_dict()
    return {name: value for name, value in current.items() if name not in general}
