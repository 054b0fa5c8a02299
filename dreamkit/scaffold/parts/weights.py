"""A part's sizes and weights, from its recipe section or from the folder that `pretrained` names.

The folder holds the sizes in `config.json` and the part's state dict in `model.safetensors`.
"""

import json
from dataclasses import fields
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dreamkit import ConfigError, PartConfig, SourceError, describe_value, did_you_mean, locate

Sizes = TypeVar("Sizes")
Part = TypeVar("Part", bound=nn.Module)


def read_sizes(kind: type[Sizes], config: PartConfig) -> Sizes:
    """Return a dataclass `kind` of integers, read from `config.config` or from the folder's `config.json`.

    Raises:
        ConfigError: some values are invalid; it has a message for each key.
        SourceError: the folder or its `config.json` is invalid.
    """
    if config.pretrained is None:
        settings, prefix = config.config or {}, "config."
    else:
        settings, prefix = _read_json(config), ""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    problems = {}
    for name, value in settings.items():
        if name not in known:
            problems[prefix + name] = f"unknown key '{name}'; {did_you_mean(name, known)}"
        elif type(value) is not int or value < 1:
            problems[prefix + name] = f"expected an integer of at least 1, got {describe_value(value)}"
    try:
        if problems:
            raise ConfigError(problems)
        return kind(**settings)
    except ConfigError as error:
        if config.pretrained is None:
            raise
        raise SourceError(
            f"config.json of '{config.pretrained}': {'; '.join(str(error).splitlines())}"
        ) from error


def check_division(sizes: object, **divided: str) -> None:
    """Check that one size divides another: `check_division(self, heads="dim")`.

    Raises:
        ConfigError: it does not.
    """
    for name, whole in divided.items():
        size, total = getattr(sizes, name), getattr(sizes, whole)
        if total % size:
            raise ConfigError({f"config.{name}": f"expected a divisor of {whole}={total}, got {size}"})


def load_weights(part: Part, config: PartConfig) -> Part:
    """Load every weight of the part from its folder and return the part.

    Raises:
        SourceError: the folder is missing, or its tensors are not exactly those of the part.
    """
    file = locate(config.pretrained or "", ["config.json", "model.safetensors"]) / "model.safetensors"
    try:
        part.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise SourceError(f"{file} does not match its config.json: {' '.join(str(error).split())}") from error
    return part


def _read_json(config: PartConfig) -> dict[str, Any]:
    # Only a local folder is checked for weights: from the hub they would be downloaded.
    file = locate(config.pretrained or "", ["config.json"], weights=config.is_local) / "config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(f"cannot read {file}: {error}") from error
