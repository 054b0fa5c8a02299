"""Conversion of a checkpoint of the published code to a dreamkit checkpoint.

A published checkpoint is a folder with `config.json`, the language model's weights (safetensors or `.bin`, sharded or
not), and one `.bin` state dict each for the vision embedding, the dream queries and the diffusion head. Its config
names Python classes under `_target_`; these names are never imported.
"""

from __future__ import annotations

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
from dreamkit.checkpoints.published.reading import read_json, read_tensors, section, under
from dreamkit.checkpoints.published.translating import sections
from dreamkit.checkpoints.published.unpacking import unpack
from dreamkit.checkpoints.save import write_checkpoint
from dreamkit.errors import CheckpointError, describe_error, describe_value, excerpt
from dreamkit.model.model import DreamModel
from dreamkit.parts.projector import Projector
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import atomic_folder, scratch_folder
from dreamkit.storage.sources import refuse_adapter

# training settings of the published head that dreamkit lacks; they do not change the output of a model
UNSUPPORTED = ("noise_offset", "input_perturbation")


def import_published(folder: Path, out: Path, registry: Registry) -> DreamModel:
    """Convert the published checkpoint in `folder` to a dreamkit checkpoint in `out`; return the model.

    Raises:
        CheckpointError: a missing or damaged file, or a published feature that dreamkit lacks.
        SourceError: a component in `config.json` is neither a folder nor a reachable hub name, or an adapter of peft
            lies beside the weights.
        OutputError: `out` cannot be written, or another command is writing it.
    """
    config = read_json(folder / "config.json")
    refuse_adapter(str(folder), [path.name for path in folder.iterdir()], ["config.json"])
    published = _plugin_settings(config, folder / "config.json")
    drawing = Drawing.of(published)
    out = out.absolute()
    # Scratch files lie beside `out`, on a disk with room for weights. If that cannot be written, nothing is read.
    with atomic_folder(out) as partial, scratch_folder(out) as scratch:
        Manifest.refuse_to_replace(out)
        # in the libraries' own layouts, so that each part loads its weights as usual
        states = {name: read_tensors(folder / file) for name, file in drawing.files().items()}
        folders, configs = unpack(folder, config, states, scratch)
        parts = sections(config, states, folders=folders)
        recipe = recipe_from_dict(parts, registry, where=str(folder / "config.json"))
        model = build(fit(recipe, registry))
        _compare_tokens(config, model, folder)
        final = sections(config, states, configs=configs, tokenizer=folders["language_model"])
        model.recipe = recipe_from_dict(final, registry, where=str(folder / "config.json"))
        model.sources = dict.fromkeys(model.sources)
        _load_queries_and_projectors(model, folder, states, drawing)
        write_checkpoint(model, partial)
    for name in UNSUPPORTED:
        if published[HEAD].get(name):
            setting = f"plugins_init_kwargs.{HEAD}.{name}={excerpt(str(published[HEAD][name]))}"
            warnings.warn(f"{setting} is ignored: dreamkit does not train with it", stacklevel=2)
    return model


def _plugin_settings(config: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of the published plug-ins, after checking that dreamkit supports them."""
    if "plugins_init_kwargs" not in config:
        model_type = describe_value(config.get("model_type"))
        raise CheckpointError(
            f"{file}: expected 'plugins_init_kwargs', got model_type {model_type} without it; name the folder "
            "of a checkpoint that the published DreamLLM code saved"
        )
    plugins = section(config, "plugins_init_kwargs", file)
    published = {name: section(plugins, name, file) for name in plugins}
    if missing := {VISION, QUERIES, HEAD} - published.keys():
        raise CheckpointError(f"{file}: missing plug-ins {sorted(missing)}, got {sorted(published)}")
    if published[VISION].get("use_additional_post_layernorm"):
        raise CheckpointError(
            f"{file}: expected plugins_init_kwargs.{VISION}.use_additional_post_layernorm false, got true; dreamkit "
            "has no part for this norm after the visual projector, and no released checkpoint uses it"
        )
    return published


def _compare_tokens(config: Mapping[str, Any], model: DreamModel, folder: Path) -> None:
    """Check that the tokenizer's ids of added tokens are those that the weights were trained with."""
    file = folder / "config.json"
    expected = section(section(config, "special_tokens2ids_dict", file), "additional_special_tokens", file)
    for name, actual in model.token_ids.items():
        if actual != expected.get(name):
            raise CheckpointError(
                f"{folder}: expected id {excerpt(str(expected.get(name)))} of {name}, as in special_tokens2ids_dict of "
                f"config.json, got {actual} from the tokenizer; a tokenizer file is missing or belongs to another model"
            )
    if model.language_model.added_token_parameters():
        raise CheckpointError(
            f"{folder}: the language model's vocabulary has no rows for {', '.join(expected)}"
        )


def _load_queries_and_projectors(
    model: DreamModel, folder: Path, states: Mapping[str, dict[str, Tensor]], drawing: Drawing
) -> None:
    """Load the weights that no library reads: dream queries and projectors."""
    file = folder / f"{QUERIES}.bin"
    queries = read_tensors(file).get("dream_queries", torch.empty(0)).squeeze(0)
    if queries.shape != model.dream_queries.shape:
        expected, actual = tuple(model.dream_queries.shape), tuple(queries.shape)
        raise CheckpointError(f"{file}: expected dream_queries of shape {expected}, got {actual}")
    with torch.no_grad():
        model.dream_queries.copy_(queries)
    for part, (plugin, prefix) in drawing.projectors.items():
        try:
            _load_projector(getattr(model, part), under(states[plugin], prefix))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / drawing.files()[plugin]}: {prefix}*: {describe_error(error)}"
            ) from error


def _load_projector(projector: Projector, state: Mapping[str, Tensor]) -> None:
    """Load one linear layer (`weight`), or several with GELUs between them (`0.weight`, `2.weight`, ...)."""
    layers = projector.dense_layers()
    assert layers is not None, "linear and mlp are dense"
    prefixes = [""] if "weight" in state else [f"{2 * number}." for number in range(len(layers))]
    for layer, prefix in zip(layers, prefixes, strict=True):
        layer.load_state_dict(under(state, prefix))
    if unused := [name for name in state if not name.startswith(tuple(prefixes))]:
        raise CheckpointError(f"unused tensors {', '.join(unused)}; projector_depth is {len(layers)}")
