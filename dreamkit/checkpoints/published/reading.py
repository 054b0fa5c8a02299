"""Reads the files of a published checkpoint."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dreamkit.errors import CheckpointError, SourceError
from dreamkit.storage.sources import locate


def language_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The language model's tensors, from one file or from shards, plug-ins' own left out."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        names = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else [stem]
        if index.is_file() or (folder / stem).is_file():
            for name in names:
                read = _read_safetensors if name.endswith(".safetensors") else read_bin
                state = read(folder / name)
                yield from ((key, t) for key, t in state.items() if key.startswith(("model.", "lm_head.")))
            return
    raise CheckpointError(
        f"{folder} has no language-model weights: looked for model.safetensors, pytorch_model.bin and their shards"
    )


def component(name: str, folder: Path, files: list[str]) -> Path:
    """The folder of a component: relative to the checkpoint or to a folder above it, or a hub name."""
    for base in (folder.absolute(), *folder.resolve().parents[:2]):
        if os.path.isdir(base / name):
            return locate(str(base / name), files, weights=False)
    try:
        return locate(name, files, weights=False)
    except SourceError as error:
        raise SourceError(f"{folder / 'config.json'} names '{name}': {error}") from error


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def read_json(file: Path) -> dict[str, Any]:
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


def read_bin(file: Path) -> dict[str, Tensor]:
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
