"""Library configs: from a recipe's small dict, or from a folder; and the weights that go with them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as library_logging

from dreamkit import DreamkitError, SourceError, did_you_mean

LibraryConfig = TypeVar("LibraryConfig", bound=PreTrainedConfig)
Built = TypeVar("Built")

# what a library's config class raises about a value it does not take
_REFUSALS = (StrictDataclassError, ValueError, TypeError, KeyError)


def config_from_dict(kind: type[LibraryConfig], values: Mapping[str, Any]) -> LibraryConfig:
    """The library's config with these values; what it does not know it would swallow without a word.

    Raises:
        DreamkitError: a key that `kind` does not have, or a value it refuses.
    """
    known = {field.name for field in fields(kind)}
    unknown = [f"'{key}' ({did_you_mean(key, known)})" for key in values if key not in known]
    if unknown:
        raise DreamkitError(f"config: {kind.__name__} has no {', '.join(unknown)}")
    try:
        config = kind(**values)
    except _REFUSALS as error:
        raise DreamkitError(f"config: {kind.__name__} refuses it: {one_line(error)}") from error
    for name in values:
        value = getattr(config, name)
        counts = name.startswith("num_") or name.endswith(("_size", "_dim", "_embeddings"))
        if counts and type(value) is int and value < 1:
            raise DreamkitError(f"config: {name} is {value}; it must be at least 1")
    return config


def config_from_folder(kind: type[LibraryConfig], folder: Path, model_types: Sequence[str]) -> LibraryConfig:
    """The config of a folder whose model is one of `model_types`.

    Raises:
        SourceError: `config.json` cannot be read, or is another architecture's.
    """
    file = folder / "config.json"
    found = read_json(file).get("model_type")
    if found not in model_types:
        wanted = " or ".join(f"'{name}'" for name in model_types)
        raise SourceError(
            f"{file} has model_type '{found}', but {wanted} is needed; name another component or folder"
        )
    try:
        with quiet():  # old configs use names that have been replaced; the library translates them
            return kind.from_pretrained(folder, local_files_only=True)
    except (*_REFUSALS, OSError) as error:
        raise SourceError(f"{file}: {kind.__name__} refuses it: {one_line(error)}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SourceError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{file} holds a {type(content).__name__}, but a JSON object is needed")
    return content


def load_weights(kind: type[PreTrainedModel], folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The library's model with the weights in `folder`, in float32. Weights it has no use for are not read.

    Raises:
        SourceError: a weight file is damaged, a weight is missing, or one has another shape than in `config`.
    """
    try:
        with quiet():  # the library's report would list every layer left out on purpose
            loaded: Any = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in what it reports, and named below
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise SourceError(f"{folder}: {kind.__name__} cannot load its weights: {one_line(error)}") from error
    model, report = loaded
    wrong = [f"{name} (needed by {kind.__name__})" for name in report["missing_keys"]]
    wrong += [
        f"{name} of shape {tuple(needed)} (it is {tuple(found)})"
        for name, found, needed in report["mismatched_keys"]
    ]
    if wrong:
        shown = ", ".join(sorted(wrong)[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise SourceError(
            f"{folder}: the weights lack {shown}{more}; the files are incomplete, or another model's than config.json"
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library's warnings to itself."""
    verbosity = library_logging.get_verbosity()
    library_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library_logging.set_verbosity(verbosity)


def on_meta(build: Callable[[], Built]) -> Built:
    """What `build` makes, without memory for its weights.

    Raises:
        DreamkitError: the config's values do not go together.
    """
    try:
        with torch.device("meta"), torch.no_grad(), quiet():
            return build()
    except DreamkitError:
        raise
    except Exception as error:  # a library's constructor fails in any way it likes
        raise DreamkitError(f"config: no model can be made of it: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
