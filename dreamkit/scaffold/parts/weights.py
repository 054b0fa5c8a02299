"""The sizes and weights of a part: from its section of a recipe, or from the folder that the section names.

The folder holds `config.json`, which gives the sizes, and `model.safetensors`, the part's state dict.
"""

import json
from dataclasses import fields
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dreamkit import ConfigError, PartConfig, SourceError, did_you_mean, locate

Sizes = TypeVar("Sizes")
Part = TypeVar("Part", bound=nn.Module)


def read_sizes(kind: type[Sizes], config: PartConfig) -> Sizes:
    """The dataclass `kind`, whose fields are whole numbers, from `config.config` or from a `config.json`.

    Raises:
        ConfigError: everything that is wrong, by key; a SourceError where the folder is wrong.
    """
    if config.pretrained is None:
        given, key = config.config or {}, "config."
    else:
        given, key = _read_json(config), ""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    problems = {}
    for name, value in given.items():
        if name not in known:
            problems[key + name] = f"there is no '{name}'; {did_you_mean(name, known)}"
        elif type(value) is not int or value < 1:
            problems[key + name] = f"{value!r} found, but a whole number of at least 1 is wanted"
    try:
        if problems:
            raise ConfigError(problems)
        return kind(**given)
    except ConfigError as error:
        if config.pretrained is None:
            raise
        raise SourceError(
            f"config.json of '{config.pretrained}': {'; '.join(str(error).splitlines())}"
        ) from error


def check_division(sizes: object, **divided: str) -> None:
    """Of `sizes`, each field that is named must divide the field that it is given: `check_division(self, heads="dim")`.

    Raises:
        ConfigError: one does not.
    """
    for name, whole in divided.items():
        if getattr(sizes, whole) % getattr(sizes, name):
            said = f"{getattr(sizes, name)} found, which does not divide {whole}, {getattr(sizes, whole)}"
            raise ConfigError({f"config.{name}": said})


def load_weights(part: Part, config: PartConfig) -> Part:
    """The part with the weights of its folder: every tensor that it has, and no other.

    Raises:
        SourceError: there is no such folder, or it does not hold the weights of this part.
    """
    file = locate(config.pretrained or "", ["config.json", "model.safetensors"]) / "model.safetensors"
    try:
        part.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise SourceError(f"{file} does not fit its config.json: {' '.join(str(error).split())}") from error
    return part


def _read_json(config: PartConfig) -> dict[str, Any]:
    # Weights are looked for only where that costs nothing: of the hub, they would be downloaded.
    file = locate(config.pretrained or "", ["config.json"], weights=config.is_local) / "config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(f"{file} cannot be read: {error}") from error
