"""Turns a checkpoint of the published code into a dreamkit checkpoint.

A published checkpoint is a folder with `config.json`, the language model's weights (safetensors or `.bin`, sharded or
not), and one `.bin` state dict each for the vision embedding, the dream queries and the diffusion head. Its config
names Python classes under `_target_`; they are read as text and never imported.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.published.layout import HEAD, QUERIES, VISION, Drawing
from dreamkit.checkpoints.published.reading import read_bin, read_json, under
from dreamkit.checkpoints.published.translating import sections
from dreamkit.checkpoints.published.unpacking import unpack
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import CheckpointError
from dreamkit.model.model import DreamModel
from dreamkit.parts.projector import Projector
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry

# training settings of the published head that dreamkit does not have, and that do not change what a model computes
LEFT_OUT = ("noise_offset", "input_perturbation")


def import_published(folder: Path, out: Path, registry: Registry) -> DreamModel:
    """Reads the published checkpoint in `folder`, writes a dreamkit checkpoint to `out`, and returns the model.

    Raises:
        CheckpointError: a file is missing or damaged, or the checkpoint uses something dreamkit does not have.
        SourceError: a component that `config.json` names is neither a folder nor a reachable hub name.
    """
    config = read_json(folder / "config.json")
    published = _plugins(config, folder / "config.json")
    out = out.absolute()
    Manifest.refuse_to_replace(out)
    # Beside `out`, where there is room for weights; what cannot be written there is said before any are read.
    with tempfile.TemporaryDirectory(dir=next(p for p in out.parents if p.exists())) as scratch:
        # The weights are laid out as the libraries save them, so that each part loads its own in its own way.
        states = {name: read_bin(folder / file) for name, file in Drawing.of(published).files().items()}
        folders, configs = unpack(folder, config, states, Path(scratch))
        parts = sections(config, states, folders=folders)
        recipe = recipe_from_dict(parts, registry, where=str(folder / "config.json"))
        model = build(fit(recipe, registry))
        _compare_tokens(config, model, folder)
        final = sections(config, states, configs=configs, tokenizer=folders["language_model"])
        model.recipe = recipe_from_dict(final, registry, where=str(folder / "config.json"))
        model.sources = dict.fromkeys(model.sources)
        _load_rest(model, folder, states, Drawing.of(published))
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
    if model.language_model.added_token_parameters():
        raise CheckpointError(f"{folder}: the language model's vocabulary has no rows for {', '.join(told)}")


def _load_rest(
    model: DreamModel, folder: Path, states: Mapping[str, dict[str, Tensor]], drawing: Drawing
) -> None:
    """The weights that belong to no library: queries and projectors."""
    file = folder / f"{QUERIES}.bin"
    queries = read_bin(file).get("dream_queries", torch.empty(0)).squeeze(0)
    if queries.shape != model.dream_queries.shape:
        wanted = tuple(model.dream_queries.shape)
        raise CheckpointError(
            f"{file} has dream_queries of shape {tuple(queries.shape)}, but {wanted} is needed"
        )
    with torch.no_grad():
        model.dream_queries.copy_(queries)
    for part, (plugin, prefix) in drawing.projectors.items():
        try:
            _load_projector(getattr(model, part), under(states[plugin], prefix))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{folder / drawing.files()[plugin]}: {prefix}*: {error}") from error


def _load_projector(projector: Projector, state: Mapping[str, Tensor]) -> None:
    """A published projector is one linear layer (`weight`), or several and GELUs (`0.weight`, `2.weight`...)."""
    layers = projector.dense_layers()
    assert layers is not None, "linear and mlp are dense"
    prefixes = [""] if "weight" in state else [f"{2 * number}." for number in range(len(layers))]
    for layer, prefix in zip(layers, prefixes, strict=True):
        layer.load_state_dict(under(state, prefix))
    if left := [name for name in state if not name.startswith(tuple(prefixes))]:
        raise ValueError(f"{', '.join(left)} would be left out; projector_depth is {len(layers)}")
