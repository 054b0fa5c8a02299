"""Library configs from a recipe's dict or from a folder, and the weights that fit them."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.utils import logging as library_logging

from dreamkit import (
    ConfigError,
    PartConfig,
    SourceError,
    StoredWeights,
    describe_error,
    did_you_mean,
    excerpt,
    library_errors,
    read_json,
    stored_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LibraryConfig = TypeVar("LibraryConfig", bound=PreTrainedConfig)
Built = TypeVar("Built")

KNOWN = "pkg:dreamkit_transformers/known"  # config files of well-known models, in folders of their names on the hub
MAX_LAYERS = 1000  # building more takes minutes, even without weights

QUANTIZED = ("quantization_config", "compression_config")  # the second one in older files

# exceptions of the library's config classes for invalid values
_INVALID = (StrictDataclassError, ValueError, TypeError, KeyError)


def config_from_dict(kind: type[LibraryConfig], values: Mapping[str, Any]) -> LibraryConfig:
    """Return the library's config with these values. The library itself would accept unknown keys.

    Raises:
        ConfigError: every unknown key and every invalid value.
    """
    known = {*(field.name for field in fields(kind)), *kind.attribute_map}
    problems = {}
    for name, value in values.items():
        if name not in known:
            problems[name] = f"unknown key '{name}' in {kind.__name__}; {did_you_mean(name, known)}"
        elif problem := _value_problem(kind, name, value):
            problems[name] = problem
    if problems:
        raise ConfigError({f"config.{name}": problem for name, problem in problems.items()})
    try:
        config = kind(**values)
    except _INVALID as error:
        raise ConfigError({"config": f"invalid for {kind.__name__}: {describe_error(error)}"}) from error
    return _with_named_outputs(config)


def _with_named_outputs(config: LibraryConfig) -> LibraryConfig:
    """Return `config` with `return_dict`, which changes the form of outputs and not their values."""
    config.return_dict = True
    return config


def _value_problem(kind: type[PreTrainedConfig], name: str, value: Any) -> str | None:
    """Return why a value is invalid regardless of the other values, or None."""
    if type(value) is int:
        usual = next((each for each, own in kind.attribute_map.items() if own == name), name)
        if value < 1 and (usual.startswith("num_") or usual.endswith(("_size", "_dim", "_embeddings"))):
            return f"expected at least 1, got {value}"
    if (problem := _range_problem(kind, name, value)) is not None:
        return problem
    if name == "hidden_act":
        from transformers.activations import ACT2FN  # imports accelerate and half of transformers

        if value not in ACT2FN:
            return f"expected the name of an activation, got {excerpt(repr(value))}; {did_you_mean(value, ACT2FN)}"
    try:
        with quiet_library():  # warnings would be about defaults, not about the user's values
            kind(**{name: value})
    except StrictDataclassFieldValidationError as error:
        return describe_error(error.__cause__ or error)
    except _INVALID:
        pass  # the value may be invalid only with the defaults of others
    return None


def _range_problem(kind: type[PreTrainedConfig], name: str, value: Any) -> str | None:
    """Return why the library would take hours to build a model with a value, or fail in training; else None."""
    usual = next((each for each, own in kind.attribute_map.items() if own == name), name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value < 1 and usual == "num_hidden_layers":
        return f"expected at least 1, got {value}"
    if value > MAX_LAYERS and usual.endswith("_layers"):
        return f"expected at most {MAX_LAYERS}, got {value}"
    if not 0 <= value <= 1 and ("dropout" in usual or "pdrop" in usual):
        return f"expected a probability from 0 to 1, got {value}"
    return None


def config_from_folder(kind: type[LibraryConfig], folder: Path, model_types: Sequence[str]) -> LibraryConfig:
    """Return the config of a folder whose model is one of `model_types`.

    Raises:
        SourceError: `config.json` cannot be read, belongs to another architecture, has a value out of range, or
            describes quantized weights.
    """
    file = folder / "config.json"
    values = read_json(file)
    model_type = values.get("model_type")
    if model_type not in model_types:
        expected = " or ".join(f"'{name}'" for name in model_types)
        raise SourceError(
            f"{file}: expected model_type {expected}, got '{excerpt(str(model_type))}'; name another component or "
            "folder"
        )
    for key in QUANTIZED:
        if (settings := values.get(key)) is not None:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            raise SourceError(
                f"{file}: {key}: expected weights of floats, got quantized ones ({method or 'unknown method'}); "
                "name the model that was quantized"
            )
    for name, value in values.items():
        if (problem := _range_problem(kind, name, value)) is not None:
            raise SourceError(f"{file}: {excerpt(name)}: {problem}")
    # quiet, since old configs use earlier names, which the library translates
    with library_errors(f"{file}: invalid for {kind.__name__}"), quiet_library():
        return _with_named_outputs(kind.from_pretrained(folder, local_files_only=True))


def random_model(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Return the library's model with random weights in float32."""
    return kind._from_config(config, attn_implementation=_attention(kind), dtype=torch.float32)


def _attention(kind: type[PreTrainedModel]) -> str:
    return "sdpa" if kind._supports_sdpa else "eager"


def load_weights(
    kind: type[PreTrainedModel],
    folder: Path,
    config: PreTrainedConfig,
    *,
    as_stored: bool = False,
    all_layers: bool = False,
) -> PreTrainedModel | None:
    """Return the library's model in float32 with the weights in `folder`. Unused weights are not read.

    `as_stored`: its weights have the type of the files and are mapped from these; the result is None if that is not
    possible. `all_layers`: the files hold no more layers than the model.

    Raises:
        SourceError: a weight file is damaged, a weight is missing, its shape differs from that of `config`, or the
            files hold more layers.
    """
    dtype = torch.float32
    if as_stored:
        stored = stored_weights(folder)
        if stored is None or not _are_mapped(kind, config, stored):
            return None
        dtype = stored.dtype
    # quiet, since the library's report would list every layer that was dropped on purpose
    with library_errors(f"{folder}: {kind.__name__} cannot load its weights"), quiet_library():
        loaded: Any = kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=_attention(kind),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below
        )
    model, report = loaded
    problems = [f"missing {name}" for name in sorted(report["missing_keys"])]
    problems += [
        f"expected {name} of shape {tuple(expected)}, got {tuple(actual)}"
        for name, actual, expected in sorted(report["mismatched_keys"])
    ]
    if all_layers:
        own = {_numberless(name) for name in model.state_dict()}
        more_layers = [name for name in sorted(report["unexpected_keys"]) if _numberless(name) in own]
        problems += [f"expected no {name}, which is of more layers" for name in more_layers]
    if problems:
        shown = "; ".join(problems[:3])
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SourceError(
            f"{folder}: the weights do not fit {kind.__name__}: {shown}{more}; "
            "use complete weight files that belong to config.json"
        )
    return model if dtype == torch.float32 else _in_float32_model(kind, config, model)


def _are_mapped(kind: type[PreTrainedModel], config: PreTrainedConfig, stored: StoredWeights) -> bool:
    """Return True if the library maps all weights; it copies those that it joins to one, such as a layer's experts."""
    model = on_meta(lambda: random_model(kind, config))
    in_files = Counter(tensor.shape for tensor in stored.tensors.values())
    return Counter(parameter.shape for parameter in model.parameters()) <= in_files


def _in_float32_model(
    kind: type[PreTrainedModel], config: PreTrainedConfig, loaded: PreTrainedModel
) -> PreTrainedModel:
    """Return a model of float32 with the weights of `loaded`: the library rounds other values to the weights' type.

    Such values are, for example, the frequencies of positions and the scale of an embedding.
    """
    state = loaded.state_dict()
    placeholders = {name: torch.zeros((), dtype=torch.float32).expand(state[name].shape) for name in state}
    with quiet_library():
        model: Any = kind.from_pretrained(
            None,
            config=config,
            state_dict=placeholders,
            dtype=torch.float32,
            attn_implementation=_attention(kind),
        )
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _numberless(name: str) -> str:
    """Return the name of a tensor without the numbers of its layers."""
    return re.sub(r"\.\d+\.", ".#.", name)


@contextmanager
def collect_errors(errors: list[ConfigError]) -> Iterator[None]:
    """Append a ConfigError raised inside to `errors` instead of raising it."""
    try:
        yield
    except ConfigError as error:
        errors.append(error)


def raise_collected(errors: Sequence[ConfigError]) -> None:
    """Raise a single error as it is, or the problems of several as one ConfigError."""
    if len(errors) > 1:
        raise ConfigError({key: problem for error in errors for key, problem in error.problems.items()})
    for error in errors:
        raise error


def raise_problems(problems: Mapping[str, str], config: PartConfig) -> None:
    """Raise problems with the values of a library config, if any, as errors of `config` or of its source."""
    if problems and config.pretrained is None:
        raise ConfigError({f"config.{name}": problem for name, problem in problems.items()})
    if problems:
        joined = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise SourceError(f"'{config.pretrained}': {joined}; name another source")


@contextmanager
def quiet_library() -> Iterator[None]:
    """Suppress the library's warnings, and its progress bars where stderr is not a terminal."""
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


def on_meta(build: Callable[[], Built], pretrained: str | None = None) -> Built:
    """Return what `build` returns on the meta device, without memory for weights.

    Raises:
        ConfigError: the values of the config do not fit each other: a recipe's, or those of the source `pretrained`.
    """
    try:
        with torch.device("meta"), torch.no_grad(), quiet_library():
            return build()
    except ConfigError:
        raise
    except Exception as error:  # model code raises any exception
        reason = f"cannot build a model from it: {describe_error(error)}"
        if pretrained is not None:
            raise SourceError(f"config.json of '{pretrained}': {reason}") from error
        raise ConfigError({"config": reason}) from error
