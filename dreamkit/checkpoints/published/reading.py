"""Reading of a published checkpoint's files."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dreamkit.errors import CheckpointError, SourceError
from dreamkit.storage.sources import locate


def language_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the language model's tensors, without those of plug-ins, from one file or from shards."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        names = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else [stem]
        if index.is_file() or (folder / stem).is_file():
            for name in names:
                state = read_tensors(folder / name)
                yield from ((key, t) for key, t in state.items() if key.startswith(("model.", "lm_head.")))
            return
    raise CheckpointError(
        f"{folder}: missing the language model's weights: model.safetensors, pytorch_model.bin or their shards"
    )


def component(name: str, folder: Path, files: list[str]) -> Path:
    """Return the folder of a component, which is relative to `folder` or to one of two folders above, or a hub name."""
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
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing; name the folder of a published DreamLLM checkpoint"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file}: expected a JSON object: {error}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file or a `.bin` state dict; `weights_only` keeps pickled code from running."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # only files in the newer zip format can be mapped into memory, which avoids reading unused tensors
        return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing; copy the whole folder of the published checkpoint"
        ) from None
    except Exception as error:  # torch raises several types for damaged and for unsafe files
        raise CheckpointError(f"{file}: cannot read it as a state dict of tensors: {error}") from error
