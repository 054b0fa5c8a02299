"""Turns a checkpoint of the published code into a dreamkit checkpoint.

A published checkpoint is a folder with `config.json`, the language model's weights (safetensors or `.bin`, sharded or
not), and one `.bin` state dict each for the vision embedding, the dream queries and the diffusion head. Its config
names Python classes under `_target_`; they are read as text and never imported.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from dreamkit.build import build
from dreamkit.checkpoint import save_checkpoint
from dreamkit.errors import CheckpointError, SourceError
from dreamkit.interfaces import Projector
from dreamkit.manifest import refuse_to_replace
from dreamkit.model import DreamModel
from dreamkit.plugins import Registry
from dreamkit.recipe import Recipe
from dreamkit.sources import locate

VISION, QUERIES, HEAD = "clip_vision_embedding", "dream_embedding", "stable_diffusion_head"
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PROJECTOR = "projector.projector."  # of both projectors, in the state dicts of their plug-ins
# training settings of the published head that dreamkit does not have, and that do not change what a model computes
LEFT_OUT = ("noise_offset", "input_perturbation")


def import_published(folder: Path, out: Path, registry: Registry) -> DreamModel:
    """Reads the published checkpoint in `folder`, writes a dreamkit checkpoint to `out`, and returns the model.

    Raises:
        CheckpointError: a file is missing or damaged, or the checkpoint uses something dreamkit does not have.
        SourceError: a component that `config.json` names is neither a folder nor a reachable hub name.
    """
    config = _read_json(folder / "config.json")
    published = _plugins(config, folder / "config.json")
    out = out.absolute()
    refuse_to_replace(out)
    # Beside `out`, where there is room for weights; what cannot be written there is said before any are read.
    with tempfile.TemporaryDirectory(dir=next(p for p in out.parents if p.exists())) as scratch:
        # The weights are laid out as the libraries save them, so that each part loads its own in its own way.
        states = {name: _read_bin(folder / f"{name}.bin") for name in (VISION, HEAD)}
        folders, configs = _unpack(folder, config, states, Path(scratch))
        biased = {name: _is_biased(state) for name, state in states.items()}
        sections = _sections(config, biased, folders=folders)
        model = build(Recipe.from_dict(sections, registry, where=str(folder / "config.json")), registry)
        _compare_tokens(config, model, folder)
        final = _sections(config, biased, configs=configs, tokenizer=folders["language_model"])
        model.recipe = Recipe.from_dict(final, registry, where=str(folder / "config.json"))
        model.sources = dict.fromkeys(model.sources)
        _load_rest(model, folder, states)
        save_checkpoint(model, out)
    for name in LEFT_OUT:
        if published[HEAD].get(name):
            given = f"plugins_init_kwargs.{HEAD}.{name}={published[HEAD][name]}"
            warnings.warn(f"{given} is left out: dreamkit does not train with it", stacklevel=2)
    return model


def _plugins(config: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """The settings of the published plug-ins, once it is sure that dreamkit has parts for them."""
    if "plugins_init_kwargs" not in config:
        raise CheckpointError(
            f"{file} has no 'plugins_init_kwargs', but model_type '{config.get('model_type')}'; "
            "give the folder of a checkpoint that the published DreamLLM code saved"
        )
    published = dict(config["plugins_init_kwargs"])
    if missing := {VISION, QUERIES, HEAD} - published.keys():
        raise CheckpointError(f"{file} has the plug-ins {sorted(published)}, but lacks {sorted(missing)}")
    if str(published[HEAD].get("_target_")).endswith("XLHead"):
        raise CheckpointError(
            f"{file}: it draws with Stable Diffusion XL, for which dreamkit has no part yet"
        )
    if published[VISION].get("use_additional_post_layernorm"):
        raise CheckpointError(
            f"{file}: plugins_init_kwargs.{VISION}.use_additional_post_layernorm is true; "
            "no released checkpoint has this extra norm after the visual projector, and dreamkit has no part for it"
        )
    return published


def _compare_tokens(config: Mapping[str, Any], model: DreamModel, folder: Path) -> None:
    """The tokenizer must give the added tokens the ids that the weights were trained with."""
    told = config.get("special_tokens2ids_dict", {}).get("additional_special_tokens", {})
    for name, found in model.token_ids.items():
        if found != told.get(name):
            raise CheckpointError(
                f"{folder}: the tokenizer gives {name} the id {found}, but config.json says {told.get(name)} "
                "(special_tokens2ids_dict); a tokenizer file is missing or another model's"
            )
    if model.language_model.new_token_parameters():
        raise CheckpointError(f"{folder}: the language model's vocabulary has no rows for {', '.join(told)}")


def _unpack(
    folder: Path, config: dict[str, Any], states: Mapping[str, dict[str, Tensor]], scratch: Path
) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Lays each part out as a folder of its library; returns these folders, and the configs in them."""
    published = config["plugins_init_kwargs"]
    folders = {name: scratch / name for name in ("language_model", "vision_encoder", "image_decoder")}

    weights = {name: t for name, t in _language_weights(folder) if not name.endswith("rotary_emb.inv_freq")}
    llama = _current("llama", config)
    _write(folders["language_model"], llama | {"model_type": "llama"}, weights)
    _copy(folder, folders["language_model"], TOKENIZER_FILES)

    clip_files = ["config.json", "preprocessor_config.json"]
    clip_folder = _component(published[VISION]["clip_vision_model_name_or_path"], folder, clip_files)
    clip = _read_json(clip_folder / "config.json")
    clip = _current("clip_vision_model", clip.get("vision_config", clip))
    weights = _under(states[VISION], "clip_vision_model.")
    _write(folders["vision_encoder"], clip | {"model_type": "clip_vision_model"}, weights)
    _copy(clip_folder, folders["vision_encoder"], ["preprocessor_config.json"])

    part_files = ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
    decoder_folder = _component(published[HEAD]["diffusion_name_or_path"], folder, part_files)
    decoder = {file.split("/")[0]: _read_json(decoder_folder / file) for file in part_files}
    for part in ("unet", "vae"):
        part_weights = _under(states[HEAD], f"{part}.")
        _write(
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


def _sections(
    config: dict[str, Any],
    biased: Mapping[str, bool],
    *,
    folders: Mapping[str, Path] | None = None,
    configs: Mapping[str, dict[str, Any]] | None = None,
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """The recipe of the model, its three big parts read from `folders` or described by `configs`."""
    published = config["plugins_init_kwargs"]

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
            "visual_projector": _projector(published[VISION], biased[VISION]),
            "condition_projector": _projector(published[HEAD], biased[HEAD]),
            "image_decoder": {"name": "stable-diffusion", **head, **source("image_decoder")},
            "dream_queries": published[QUERIES].get("num_dream_queries", 64),
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
    return any(name.endswith("bias") for name in _under(state, PROJECTOR))


def _load_rest(model: DreamModel, folder: Path, states: Mapping[str, dict[str, Tensor]]) -> None:
    """The weights that belong to no library: queries and projectors."""
    file = folder / f"{QUERIES}.bin"
    queries = _read_bin(file).get("dream_queries", torch.empty(0)).squeeze(0)
    if queries.shape != model.dream_queries.shape:
        wanted = tuple(model.dream_queries.shape)
        raise CheckpointError(
            f"{file} has dream_queries of shape {tuple(queries.shape)}, but {wanted} is needed"
        )
    with torch.no_grad():
        model.dream_queries.copy_(queries)
    for name, projector in ((VISION, model.visual_projector), (HEAD, model.condition_projector)):
        try:
            _load_projector(projector, _under(states[name], PROJECTOR))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{folder / name}.bin: {PROJECTOR}*: {error}") from error


def _load_projector(projector: Projector, state: Mapping[str, Tensor]) -> None:
    """A published projector is one linear layer (`weight`), or several and GELUs (`0.weight`, `2.weight`...)."""
    layers = projector.dense_layers()
    assert layers is not None, "linear and mlp are dense"
    prefixes = [""] if "weight" in state else [f"{2 * number}." for number in range(len(layers))]
    for layer, prefix in zip(layers, prefixes, strict=True):
        layer.load_state_dict(_under(state, prefix))
    if left := [name for name in state if not name.startswith(tuple(prefixes))]:
        raise ValueError(f"{', '.join(left)} would be left out; projector_depth is {len(layers)}")


def _language_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The language model's tensors, from one file or from shards, plug-ins' own left out."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        names = sorted(set(_read_json(index).get("weight_map", {}).values())) if index.is_file() else [stem]
        if index.is_file() or (folder / stem).is_file():
            for name in names:
                read = _read_safetensors if name.endswith(".safetensors") else _read_bin
                state = read(folder / name)
                yield from ((key, t) for key, t in state.items() if key.startswith(("model.", "lm_head.")))
            return
    raise CheckpointError(
        f"{folder} has no language-model weights: looked for model.safetensors, pytorch_model.bin and their shards"
    )


def _current(model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What of an old config the library's present class has, under its present names, where it is not the default."""
    known = AutoConfig.for_model(model_type).to_dict().keys() | {"rope_theta", "rope_scaling"}
    general = {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
    kept = {name: value for name, value in config.items() if name in known - general}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old names, which the library translates
        current = AutoConfig.for_model(model_type, **kept).to_diff_dict()
    return {name: value for name, value in current.items() if name not in general}


def _component(name: str, folder: Path, files: list[str]) -> Path:
    """The folder of a component: relative to the checkpoint or to a folder above it, or a hub name."""
    for base in (folder.absolute(), *folder.resolve().parents[:2]):
        if os.path.isdir(base / name):
            return locate(str(base / name), files, weights=False)
    try:
        return locate(name, files, weights=False)
    except SourceError as error:
        raise SourceError(f"{folder / 'config.json'} names '{name}': {error}") from error


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _write(
    folder: Path, config: dict[str, Any], state: dict[str, Tensor], file: str = "model.safetensors"
) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    # Cloned, since tensors that are tied in a state dict share memory, which safetensors refuses.
    save_file({name: t.clone().contiguous() for name, t in state.items()}, folder / file, {"format": "pt"})


def _copy(source: Path, target: Path, names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing; give the folder of a published DreamLLM checkpoint"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}") from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing, but the index beside it names it") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _read_bin(file: Path) -> dict[str, Tensor]:
    """A state dict; `weights_only` keeps pickled code from running."""
    try:
        # Only files of the present form can be mapped into memory, which spares reading what is not used.
        return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing; a published checkpoint holds one .bin for each plug-in"
        ) from None
    except Exception as error:  # torch raises several types for damaged and for unsafe files
        raise CheckpointError(f"{file} cannot be read as a state dict of tensors: {error}") from error
