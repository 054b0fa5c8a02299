"""The source that a recipe names: an architecture of timm, and its weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import timm
from timm.models import PretrainedCfg

from dreamkit import (
    ConfigError,
    PartConfig,
    SourceError,
    describe_value,
    did_you_mean,
    excerpt,
    locate,
    read_json,
)

WEIGHTS: Final = "model.safetensors"
_OWNER: Final = "timm/"
# arguments that do not change the features: the weights' source and the head
_RESERVED: Final = frozenset(inspect.signature(timm.create_model).parameters) - {"kwargs"} | {
    "features_only",
    "num_classes",
    "out_indices",
    "pretrained_filter_fn",
    "pretrained_strict",
}


@dataclass(frozen=True)
class Source:
    """A model by the `name` and the `arguments` that `timm.create_model` takes.

    `architecture` is timm's name of it. `config_text` is the content of a folder's config file, if `name` is a folder.
    `has_weights`: its weights are loaded, not random.
    """

    name: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    has_weights: bool = False


def find_source(config: PartConfig) -> Source:
    """Return the source that `config` names, without its weights.

    Raises:
        ConfigError: timm lacks the architecture or the tag, or an argument does not change the features.
        SourceError: `config.pretrained` does not exist, has no weights, or is another library's model.
    """
    if config.pretrained is None:
        return _from_config(config.config or {})
    name = _third_party_weights().get(config.pretrained) or config.pretrained.removeprefix(_OWNER)
    if name == config.pretrained or name not in _tagged_names(name):
        return _from_folder(_folder(config))
    if message := _location_error(name, config.pretrained):
        raise SourceError(f"'{config.pretrained}': {message}")
    return Source(name, name, has_weights=True)  # timm itself describes it: nothing is downloaded


def _from_config(values: Mapping[str, Any]) -> Source:
    if "architecture" not in values:
        raise ConfigError(
            {"config.architecture": "missing 'architecture': name one, such as vit_base_patch16_224"}
        )
    name = values["architecture"]
    problems = {
        f"config.{key}": f"'{key}' does not change the features; remove it"
        for key in _RESERVED & values.keys()
    }
    if message := _name_error(name):
        problems["config.architecture"] = message
    if problems:
        raise ConfigError(problems)
    return Source(name, name, {key: value for key, value in values.items() if key != "architecture"})


def _name_error(name: object) -> str | None:
    """Return why `name`, with or without a tag, is not an architecture of timm, or None if it is."""
    if not isinstance(name, str) or not timm.is_model(name):
        architecture = str(name).partition(".")[0]
        near = _nearest(architecture, timm.list_models())
        return f"expected an architecture of timm, got '{excerpt(architecture)}'; {near}"
    if "." in name and name not in _tagged_names(name):
        near = did_you_mean(name, _tagged_names(name))
        return f"expected a tag of timm, which sets mean and size of the input, got '{excerpt(name)}'; {near}"
    return None


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint at the nearest of many names, which a message cannot list."""
    near = did_you_mean(name, known)
    return near if near.startswith("did you mean") else "timm.list_models() returns all names"


def _tagged_names(name: str) -> list[str]:
    """Return the names with tags of all weights of an architecture in timm."""
    return list(timm.models.get_arch_pretrained_cfgs(name))


def _pretrained_cfg(name: str) -> PretrainedCfg:
    """Return timm's record of the weights of a name with its tag."""
    record = timm.get_pretrained_cfg(name)
    assert record is not None, "timm lists it"
    return record


def _names_with_weights(name: str) -> list[str]:
    return [tagged for tagged in _tagged_names(name) if _pretrained_cfg(tagged).has_weights]


@cache
def _third_party_weights() -> dict[str, str]:
    """Return timm's names with tags of weights that have another owner on the hub, by their hub name."""
    return {
        hub_name: name
        for name in timm.list_pretrained()
        if (hub_name := _pretrained_cfg(name).hf_hub_id) and not hub_name.startswith(_OWNER)
    }


def _location_error(name: str, pretrained: str) -> str | None:
    """Return why the hub name `pretrained` lacks the weights of a name with its tag, and a remedy; else None."""
    record = _pretrained_cfg(name)
    if record.hf_hub_id == pretrained:
        return None
    if not record.has_weights:
        others = _names_with_weights(name)
        near = did_you_mean(name, others) if others else _nearest(name, timm.list_pretrained())
        return f"timm has no weights of this name; {near}"
    saved = f"a folder that timm.models.save_for_hf wrote of timm.create_model('{name}', pretrained=True)"
    if not record.hf_hub_id:
        return f"timm downloads these weights from {record.url}, not from the hub; name {saved}"
    if record.hf_hub_id in _third_party_weights():
        return f"the hub has these weights as '{record.hf_hub_id}'; name that, or {saved}"
    return f"the hub has these weights only as those of '{record.hf_hub_id}'; name {saved}"


def _folder(config: PartConfig) -> Path:
    assert config.pretrained is not None, "a config has no folder"
    files = ["config.json", WEIGHTS] if config.is_local else ["config.json"]
    try:
        return locate(config.pretrained, files, weights=config.is_local)
    except SourceError as error:
        name = config.pretrained.removeprefix(_OWNER)
        if config.is_local or name == config.pretrained:
            raise
        near = did_you_mean(name, _names_with_weights(name) or timm.list_pretrained())
        if not near.startswith("did you mean"):
            raise
        raise SourceError(f"{error}; {near}") from error


def _from_folder(folder: Path) -> Source:
    file = folder / "config.json"
    content = read_json(file)
    name = content.get("architecture")
    if name is None:
        raise SourceError(f"{file}: missing 'architecture': name another component or folder")
    arguments = content.get("model_args") or {}
    if message := _name_error(name):
        raise SourceError(f"{file}: {message}")
    if not isinstance(arguments, dict):
        raise SourceError(f"{file}: model_args: expected an object, got {describe_value(arguments)}")
    if reserved := sorted(_RESERVED & arguments.keys() - {"num_classes"}):
        raise SourceError(f"{file}: unsupported model_args {', '.join(reserved)}; remove them")
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    return Source(f"local-dir:{folder}", name, arguments, json.dumps(content), has_weights=True)
