"""Library configs: from a recipe's small dict, or from a folder; and the weights that go with them."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import logging as library_logging

from dreamkit import ConfigError, PartConfig, SourceError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LibraryConfig = TypeVar("LibraryConfig", bound=PreTrainedConfig)
Built = TypeVar("Built")

KNOWN = "pkg:dreamkit_transformers/known"  # the config files of well-known models, by their names on the hub
MAX_LAYERS = 1000  # making them takes time, even without weights

# what a library's config class raises about a value it does not take
_REFUSALS = (StrictDataclassError, ValueError, TypeError, KeyError)


def config_from_dict(kind: type[LibraryConfig], values: Mapping[str, Any]) -> LibraryConfig:
    """The library's config with these values; what it does not know it would swallow without a word.

    Raises:
        ConfigError: each key that `kind` does not have, and each value it refuses.
    """
    known = {*(field.name for field in fields(kind)), *kind.attribute_map}
    problems = {}
    for name, value in values.items():
        if name not in known:
            problems[name] = f"{kind.__name__} has no '{name}'; {did_you_mean(name, known)}"
        elif said := _mistake(kind, name, value):
            problems[name] = said
    if problems:
        raise ConfigError({f"config.{name}": said for name, said in problems.items()})
    try:
        return kind(**values)
    except _REFUSALS as error:
        raise ConfigError({"config": f"{kind.__name__} refuses it: {one_line(error)}"}) from error


def _mistake(kind: type[PreTrainedConfig], name: str, value: Any) -> str | None:
    """What is wrong with one value, whatever the others are."""
    if type(value) is int:
        usual = next((each for each, own in kind.attribute_map.items() if own == name), name)
        if value < 1 and (usual.startswith("num_") or usual.endswith(("_size", "_dim", "_embeddings"))):
            return f"{value} found, but at least 1 is wanted"
        if value > MAX_LAYERS and usual.endswith("_layers"):
            return f"{value} found, but at most {MAX_LAYERS} is wanted"
    if name == "hidden_act":
        from transformers.activations import ACT2FN  # with it come accelerate and half of transformers

        if value not in ACT2FN:
            return f"{value!r} found, but the name of an activation is wanted; {did_you_mean(value, ACT2FN)}"
    try:
        with quiet():  # the other values are not yet the user's
            kind(**{name: value})
    except StrictDataclassFieldValidationError as error:
        return one_line(error.__cause__ or error)
    except _REFUSALS:
        pass  # it may go with the other values, if not with their defaults
    return None


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
                attn_implementation="sdpa" if kind._supports_sdpa else "eager",
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
def gathering(errors: list[ConfigError]) -> Iterator[None]:
    """Puts what is refused inside into `errors`, instead of raising it."""
    try:
        yield
    except ConfigError as error:
        errors.append(error)


def raise_all(errors: Sequence[ConfigError]) -> None:
    """Raises the one error as it is, or several as one."""
    if len(errors) > 1:
        raise ConfigError({key: said for error in errors for key, said in error.problems.items()})
    for error in errors:
        raise error


def refuse(problems: Mapping[str, str], config: PartConfig) -> None:
    """Raises a ConfigError where there are problems with a library config's values, at the setting they are from."""
    if problems and config.pretrained is None:
        raise ConfigError({f"config.{name}": said for name, said in problems.items()})
    if problems:
        whole = "; ".join(f"{name}: {said}" for name, said in problems.items())
        raise SourceError(f"'{config.pretrained}': {whole}; name another source")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library's warnings to itself, and its progress bars where nobody watches them move."""
    verbosity = library_logging.get_verbosity()
    library_logging.set_verbosity_error()
    had_bars = library_logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        library_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library_logging.set_verbosity(verbosity)
        if had_bars:
            library_logging.enable_progress_bar()


def on_meta(build: Callable[[], Built]) -> Built:
    """What `build` makes, without memory for its weights.

    Raises:
        ConfigError: the config's values do not go together.
    """
    try:
        with torch.device("meta"), torch.no_grad(), quiet():
            return build()
    except ConfigError:
        raise
    except Exception as error:  # a library's constructor fails in any way it likes
        raise ConfigError({"config": f"no model can be made of it: {one_line(error)}"}) from error


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
