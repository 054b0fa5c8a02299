"""Reading of a published checkpoint's files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from dreamkit.errors import CheckpointError, SourceError, excerpt, printable
from dreamkit.storage import tensor_files
from dreamkit.storage.json_files import read_json as read_object
from dreamkit.storage.paths import shown_path
from dreamkit.storage.sources import locate
from dreamkit.storage.tensor_files import LONGEST_NAME, copy_problem, dtype_name, is_float, non_finite
from dreamkit.storage.weight_files import missing_weights

INDICES = "position_ids"  # end of the names of the tensors that are not weights


def language_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the language model's tensors, without those of plug-ins, from one file or from shards."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        names = _shards(index) if index.exists() else [stem]
        if index.exists() or (folder / stem).exists():
            origins: dict[str, str] = {}
            for name in names:
                for key, tensor in read_tensors(folder / name).items():
                    if problem := copy_problem(key, name, origins):
                        raise CheckpointError(f"{folder / name}: {problem}")
                    if key.startswith(("model.", "lm_head.")):
                        yield key, tensor
            return
    lacking = missing_weights([path.name for path in folder.iterdir()], PurePosixPath())
    raise CheckpointError(
        f"{folder}: missing the language model's weights: model.safetensors, pytorch_model.bin or their shards"
        + "".join(f"; it lacks {text}" for text in lacking)
    )


def _shards(index: Path) -> list[str]:
    names = section(read_json(index), "weight_map", index)
    shards = {string(names, tensor, index) for tensor in names}
    if missing := sorted(shards - {path.name for path in index.parent.iterdir()}):
        raise CheckpointError(
            f"{index}: {excerpt(missing[0])} is missing from its folder; copy the whole folder of the published "
            "checkpoint"
        )
    return sorted(shards)


def component(name: str, folder: Path, files: list[str]) -> Path:
    """Return the folder of a component, which is relative to `folder` or to one of two folders above, or a hub name."""
    for base in (folder.absolute(), *folder.resolve().parents[:2]):
        if os.path.isdir(base / name):
            return locate(str(base / name), files, weights=False)
    try:
        return locate(name, files, weights=False)
    except SourceError as error:
        raise SourceError(f"{folder / 'config.json'} names '{shown_path(name)}': {error}") from error


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise CheckpointError(f"{file} is missing; name the folder of a published DreamLLM checkpoint")
    try:
        return read_object(file)
    except SourceError as error:
        raise CheckpointError(str(error)) from error


def section(values: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    """Return the object at `key` of the values in `file`; it is empty if the key is missing."""
    value = values.get(key, {})
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{file}: {printable(key)}: expected an object, got {excerpt(json.dumps(value))}"
        )
    return value


def string(values: Mapping[str, Any], key: str, file: Path) -> str:
    """Return the string at `key` of the values in `file`."""
    value = values.get(key)
    if not isinstance(value, str):
        raise CheckpointError(
            f"{file}: {printable(key)}: expected a string, got {excerpt(json.dumps(value))}"
        )
    return value


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file or a `.bin` state dict, whose weights are finite numbers.

    Raises:
        CheckpointError: the file is missing, damaged or an unsafe pickle, or a weight has another type or NaN.
    """
    if not file.exists():
        raise CheckpointError(f"{file} is missing; copy the whole folder of the published checkpoint")
    tensors = tensor_files.read_tensors(file, CheckpointError)
    for name, tensor in tensors.items():
        where = f"{file}: {excerpt(name, LONGEST_NAME)}"
        if not name.endswith(INDICES) and not is_float(tensor.dtype):
            raise CheckpointError(f"{where}: expected floating-point weights, got {dtype_name(tensor.dtype)}")
        if is_float(tensor.dtype) and (kind := non_finite(tensor)):
            raise CheckpointError(f"{where}: expected finite values, got {kind}; use another checkpoint")
    return tensors
