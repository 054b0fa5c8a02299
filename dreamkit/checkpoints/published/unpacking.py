"""Conversion of a published checkpoint's parts to folders in the formats of their libraries."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from dreamkit.checkpoints.published.layout import HEAD, VISION
from dreamkit.checkpoints.published.reading import (
    component,
    language_weights,
    read_json,
    section,
    string,
    under,
)
from dreamkit.errors import library_errors
from dreamkit.storage.writing import writing

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def unpack(
    folder: Path, config: dict[str, Any], states: Mapping[str, dict[str, Tensor]], scratch: Path
) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Write each part as a folder in its library's format; return the folders and their configs, by part."""
    published = config["plugins_init_kwargs"]
    folders = {name: scratch / name for name in ("language_model", "vision_encoder", "image_decoder")}

    weights = {name: t for name, t in language_weights(folder) if not name.endswith("rotary_emb.inv_freq")}
    file = folder / "config.json"
    llama = _current("llama", config, file)
    _write(folders["language_model"], llama | {"model_type": "llama"}, weights)
    _copy(folder, folders["language_model"], TOKENIZER_FILES)

    clip_files = ["config.json", "|".join(PROCESSOR_FILES)]
    clip_folder = component(
        string(published[VISION], "clip_vision_model_name_or_path", file), folder, clip_files
    )
    clip_file = clip_folder / "config.json"
    clip = read_json(clip_file)
    clip = section(clip, "vision_config", clip_file) or clip
    clip = _current("clip_vision_model", clip, clip_file)
    weights = under(states[VISION], "clip_vision_model.")
    _write(folders["vision_encoder"], clip | {"model_type": "clip_vision_model"}, weights)
    _copy(clip_folder, folders["vision_encoder"], PROCESSOR_FILES)

    part_files = ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
    decoder_folder = component(string(published[HEAD], "diffusion_name_or_path", file), folder, part_files)
    decoder = {file.split("/")[0]: read_json(decoder_folder / file) for file in part_files}
    for part in ("unet", "vae"):
        part_weights = under(states[HEAD], f"{part}.")
        _write(
            folders["image_decoder"] / part,
            decoder[part],
            part_weights,
            "diffusion_pytorch_model.safetensors",
        )
    with writing(scheduler := folders["image_decoder"] / part_files[2]):
        scheduler.parent.mkdir()
        scheduler.write_text(json.dumps(decoder["scheduler"]))

    decoder = {
        name: {k: v for k, v in part.items() if not k.startswith("_")} for name, part in decoder.items()
    }
    return folders, {"language_model": llama, "vision_encoder": clip, "image_decoder": decoder}


def _current(model_type: str, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the settings of an old config that the library still has, by present names and without defaults.

    Raises:
        SourceError: the library refuses a value of `file`.
    """
    known = AutoConfig.for_model(model_type).to_dict().keys() | {"rope_theta", "rope_scaling"}
    general = {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
    settings = {name: value for name, value in config.items() if name in known - general}
    with library_errors(f"{file}: invalid for {model_type}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about old names, which the library translates
        current = AutoConfig.for_model(model_type, **settings).to_diff_dict()
    return {name: value for name, value in current.items() if name not in general}


def _write(
    folder: Path, config: dict[str, Any], state: dict[str, Tensor], file: str = "model.safetensors"
) -> None:
    # cloned, since tied tensors in a state dict share memory, which safetensors refuses
    tensors = {name: t.clone().contiguous() for name, t in state.items()}
    with writing(folder / file):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / file, {"format": "pt"})


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_file():
            content = (source / name).read_bytes()
            with writing(target / name):
                (target / name).write_bytes(content)
