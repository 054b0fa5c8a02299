"""What a recipe names: an architecture that timm knows, and the weights for it."""

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

from dreamkit import ConfigError, PartConfig, SourceError, did_you_mean, locate

WEIGHTS: Final = "model.safetensors"
_OWNER: Final = "timm/"
# What is not of a model's making: where its weights come from, and the head, which is not kept.
_RESERVED: Final = frozenset(inspect.signature(timm.create_model).parameters) - {"kwargs"} | {
    "features_only",
    "num_classes",
    "out_indices",
    "pretrained_filter_fn",
    "pretrained_strict",
}


@dataclass(frozen=True)
class Source:
    """`name` is what `timm.create_model` takes, and `arguments` its keyword arguments, those of a folder included.

    `architecture` is its name for timm. `told` is what the folder's config file says, where `name` is a folder.
    `has_weights`: it will be filled with some, and not made with random ones.
    """

    name: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    told: str = ""
    has_weights: bool = False


def source(config: PartConfig) -> Source:
    """What `config` names, without weights.

    Raises:
        ConfigError: an architecture or a tag that timm does not know, or arguments that are not a model's.
        SourceError: `config.pretrained` cannot be found, has no weights there, or holds another library's model.
    """
    if config.pretrained is None:
        return _of_config(config.config or {})
    name = _kept_elsewhere().get(config.pretrained) or config.pretrained.removeprefix(_OWNER)
    if name == config.pretrained or name not in _tagged(name):
        return _of_folder(_folder(config))
    if said := _lacking(name, config.pretrained):
        raise SourceError(f"'{config.pretrained}': {said}")
    return Source(name, name, has_weights=True)  # described by timm itself, and nothing needs to be asked for


def weights_file(pretrained: str) -> Path:
    """The file that holds the weights of a source.

    Raises:
        SourceError: it cannot be found.
    """
    return locate(pretrained, ["config.json", WEIGHTS]) / WEIGHTS


def _of_config(values: Mapping[str, Any]) -> Source:
    if "architecture" not in values:
        raise ConfigError({"config.architecture": "none found; name one, such as vit_base_patch16_224"})
    name = values["architecture"]
    problems = {
        f"config.{key}": "found, but it says nothing of the features; remove it"
        for key in _RESERVED & values.keys()
    }
    if said := _unknown(name):
        problems["config.architecture"] = said
    if problems:
        raise ConfigError(problems)
    return Source(name, name, {key: value for key, value in values.items() if key != "architecture"})


def _unknown(name: object) -> str | None:
    """What is wrong with an architecture's name, with its tag or without."""
    if not isinstance(name, str) or not timm.is_model(name):
        architecture = str(name).partition(".")[0]
        return f"timm has no architecture '{architecture}'; {_nearest(architecture, timm.list_models())}"
    if "." in name and name not in _tagged(name):
        return f"timm knows no weights '{name}', whose mean and size it would take; {did_you_mean(name, _tagged(name))}"
    return None


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest of more names than a message can list."""
    near = did_you_mean(name, known)
    return near if near.startswith("did you mean") else "timm.list_models() tells all it has"


def _tagged(name: str) -> list[str]:
    """The names, with their tags, of the weights timm knows for an architecture."""
    return list(timm.models.get_arch_pretrained_cfgs(name))


def _settings(name: str) -> PretrainedCfg:
    """What timm knows of the weights of a name with its tag."""
    known = timm.get_pretrained_cfg(name)
    assert known is not None, "timm lists it"
    return known


def _with_weights(name: str) -> list[str]:
    return [each for each in _tagged(name) if _settings(each).has_weights]


@cache
def _kept_elsewhere() -> dict[str, str]:
    """The names, with their tags, of weights that others than timm keep on the hub, by where they are."""
    return {
        kept: name
        for name in timm.list_pretrained()
        if (kept := _settings(name).hf_hub_id) and not kept.startswith(_OWNER)
    }


def _lacking(name: str, pretrained: str) -> str | None:
    """Why the weights of a name with its tag are not to be had under a hub name, and what to do."""
    known = _settings(name)
    if known.hf_hub_id == pretrained:
        return None
    if not known.has_weights:
        others = _with_weights(name)
        near = did_you_mean(name, others) if others else _nearest(name, timm.list_pretrained())
        return f"timm has no weights of this name; {near}"
    saved = f"a folder that timm.models.save_for_hf wrote of timm.create_model('{name}', pretrained=True)"
    if not known.hf_hub_id:
        return f"timm has its weights from {known.url}, not from the hub; name {saved}"
    if known.hf_hub_id in _kept_elsewhere():
        return f"its weights are kept as '{known.hf_hub_id}'; name that, or {saved}"
    return f"its weights are kept as those of another model, '{known.hf_hub_id}'; name {saved}"


def _folder(config: PartConfig) -> Path:
    assert config.pretrained is not None, "only what is pretrained has a folder"
    files = ["config.json", WEIGHTS] if config.is_local else ["config.json"]
    try:
        return locate(config.pretrained, files, weights=config.is_local)
    except SourceError as error:
        name = config.pretrained.removeprefix(_OWNER)
        if config.is_local or name == config.pretrained:
            raise
        known = _with_weights(name) or timm.list_pretrained()
        near = did_you_mean(name, known)
        if not near.startswith("did you mean"):
            raise
        raise SourceError(f"{error}. Of those that timm knows, {near}") from error


def _of_folder(folder: Path) -> Source:
    file = folder / "config.json"
    try:
        told = file.read_text(encoding="utf-8")
        content = json.loads(told)
    except (OSError, ValueError) as error:
        raise SourceError(f"{file} cannot be read: {error}") from error
    name = content.get("architecture") if isinstance(content, dict) else None
    if name is None:
        raise SourceError(f"{file} names no architecture of timm; name another component or folder")
    arguments = content.get("model_args") or {}
    said = _unknown(name)
    if said is None and _RESERVED & arguments.keys() - {"num_classes"}:
        said = f"its model_args hold {', '.join(sorted(_RESERVED & arguments.keys()))}, which are no model's"
    if said is not None:
        raise SourceError(f"{file}: {said}")
    kept = {key: value for key, value in arguments.items() if key != "num_classes"}
    return Source(f"local-dir:{folder}", name, kept, told, has_weights=True)
