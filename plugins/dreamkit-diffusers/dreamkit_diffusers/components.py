"""Network, VAE and schedule of a latent-diffusion model, from a folder of diffusers or small dicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dreamkit import ConfigError, PartConfig, SourceError, did_you_mean, locate
from dreamkit_diffusers.networks import Network
from dreamkit_diffusers.schedulers import Schedulers, is_count

if TYPE_CHECKING:
    from diffusers import ModelMixin

KNOWN = "pkg:dreamkit_diffusers/known"  # config files of well-known hub models
MAX_LAYERS = 100  # of a block; making them takes time, even without weights


@dataclass(frozen=True)
class Layout:
    """What a kind of decoder is made of: two classes of diffusers, and schedulers that fit its objective.

    `network` names the folder of what predicts, which is also its name in the decoder. The other folders are `vae`
    and `scheduler`.
    """

    network: str
    predictor: Network
    vae: Network
    schedulers: Schedulers

    @property
    def models(self) -> dict[str, Network]:
        return {self.network: self.predictor, "vae": self.vae}

    @property
    def files(self) -> dict[str, str]:
        return {name: f"{name}/config.json" for name in self.models} | {
            "scheduler": "scheduler/scheduler_config.json"
        }


@dataclass(frozen=True)
class Components:
    """The two models, and the scheduler's config as it was given."""

    network: ModelMixin
    vae: ModelMixin
    schedule_config: dict[str, Any]


@dataclass(frozen=True)
class Described:
    """The three configs by name, as they were `given` and with defaults in `values`, and what is wrong with them.

    `folder` is the one they are from, or None where they are a recipe's `config`.
    """

    layout: Layout
    folder: Path | None
    given: dict[str, dict[str, Any]]
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        return {name: {**model.arguments, **self.given[name]} for name, model in self.layout.models.items()}

    def problem(self, key: str, message: str) -> None:
        """Something wrong with a value, such as `unet.sample_size`. Those of a folder are all told of its name."""
        if self.folder is None:
            self.problems.setdefault(f"config.{key}", message)
        else:
            name, _, inner = key.partition(".")
            told = f"{self.folder}/{self.layout.files[name]}: {f'{inner}: ' if inner else ''}{message}"
            others = self.problems.get("pretrained")
            self.problems["pretrained"] = told if others is None else f"{others}; {told}"

    def is_sound(self, name: str) -> bool:
        """Whether nothing has been found wrong with a config."""
        key = "pretrained" if self.folder is not None else f"config.{name}"
        return not any(f"{found}.".startswith(f"{key}.") for found in self.problems)

    def raise_any(self) -> None:
        if self.problems.keys() == {"pretrained"}:
            raise SourceError(self.problems["pretrained"])
        if self.problems:
            raise ConfigError(self.problems)


def described(layout: Layout, config: PartConfig, *, weights: bool = False) -> Described:
    """The configs of a section. A recipe's were made on the meta device, so that its `problems` are all there are.

    Those of a folder are a model's, and are made with the part: it would take diffusers' networks to try them.

    Raises:
        ConfigError: there is no such folder, a file or config is missing, or, with `weights`, the weights are.
    """
    if (config.pretrained is None) == (config.config is None):
        raise ConfigError(
            {"": f"pretrained is {config.pretrained!r} and config is {config.config!r}; give exactly one"}
        )
    files = layout.files
    if config.pretrained is not None:
        _check_known(layout, config)
        folder = locate(config.pretrained, list(files.values()), weights=weights, known=KNOWN)
        found = Described(layout, folder, {name: _read(folder / file) for name, file in files.items()})
    else:
        given: dict[str, Any] = {"scheduler": {}, **(config.config or {})}
        found = Described(layout, None, {name: dict(_mapping(given.get(name))) for name in files})
        _check_keys(found, "", given, files)
        for name in files:
            if not isinstance(given.get(name), Mapping):
                said = f"{given[name]!r} found" if name in given else "missing"
                found.problem(name, f"{said}, but a section of the values of a {files[name]} is wanted")
        for name, model in layout.models.items():
            _check_keys(found, name, found.given[name], model.arguments)
        _check_keys(found, "scheduler", found.given["scheduler"], layout.schedulers.keys())
        if not all(isinstance(given.get(name), Mapping) for name in files):
            found.raise_any()
    for name, model in layout.models.items():
        _check_class(found, name, model)
        _check_blocks(found, name)
        if found.folder is None and found.is_sound(name):
            with torch.device("meta"):
                _make(found, name, model)
    _check_schedule(found)
    return found


def random(found: Described, device: str | None = None) -> Components:
    """The components with random weights from torch's global generator.

    Raises:
        ConfigError: a config does not describe a model.
    """
    with nullcontext() if device is None else torch.device(device):
        network, vae = [_make(found, name, model) for name, model in found.layout.models.items()]
    found.raise_any()
    return Components(network, vae, found.given["scheduler"])


def pretrained(found: Described) -> Components:
    """The components with the weights of a folder, in float32.

    Raises:
        SourceError: weights are damaged, or some are missing.
    """
    assert found.folder is not None, "only a folder has weights"
    network, vae = (_load(model.kind, found.folder / name) for name, model in found.layout.models.items())
    return Components(network, vae, found.given["scheduler"])


def _check_known(layout: Layout, config: PartConfig) -> None:
    """A well-known model of other parts is said to be so, before anyone is asked for files that it does not have."""
    assert config.pretrained is not None
    folder = Path(__file__).parent / "known" / config.pretrained
    if not config.is_local and folder.is_dir() and not (folder / layout.network).is_dir():
        parts = ", ".join(sorted(f"{part.name}/" for part in folder.iterdir()))
        raise SourceError(
            f"'{config.pretrained}' has {parts}, but {layout.network}/ is wanted; name an image decoder made for it"
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{file} holds a {type(values).__name__}, but a config is a JSON object")
    return values


def _check_keys(found: Described, name: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """diffusers only warns of keys it does not know; those that start with `_` it writes itself."""
    known = set(known)
    for key in given:
        if key not in known and not str(key).startswith("_"):
            found.problem(
                f"{name}.{key}" if name else key, f"unknown key '{key}'; {did_you_mean(key, known)}"
            )


def _check_class(found: Described, name: str, model: Network) -> None:
    named = found.given[name].get("_class_name", model.name)
    if named != model.name:
        message = f"it is of class '{named}', but '{model.name}' is wanted; name another source"
        found.problem(f"{name}._class_name", message)


def _check_blocks(found: Described, name: str) -> None:
    """What would take for ever, or what diffusers would refuse without a word of which value it was."""
    values = found.values[name]
    channels, groups = values.get("block_out_channels"), values.get("norm_num_groups")
    if is_count(groups) and isinstance(channels, list | tuple):
        odd = [width for width in channels if is_count(width) and width % groups]
        if odd:
            message = f"{groups} found, but block_out_channels has {odd[0]}, which {groups} does not divide"
            found.problem(f"{name}.norm_num_groups", message)
    for key in ("cross_attention_dim", "joint_attention_dim", "caption_channels", "patch_size"):
        if not is_count(values.get(key, 1)):
            found.problem(f"{name}.{key}", f"{values[key]!r} found, but a whole number from 1 is wanted")
    for key, value in found.given[name].items():
        many = [number for number in _numbers(value) if number > MAX_LAYERS]
        if many and (key.endswith("layers_per_block") or key == "num_layers"):
            found.problem(f"{name}.{key}", f"{many[0]} found, but at most {MAX_LAYERS} is wanted")


def _numbers(value: Any) -> list[float]:
    """All the numbers in a value, which may be lists of lists."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _make(found: Described, name: str, model: Network) -> Any:
    """Return a model with random weights; None, and a problem in `found`, where its config describes none."""
    try:
        return model.kind.from_config(found.given[name])
    # whatever a mistaken value makes diffusers raise, which can be anything
    except Exception as error:
        found.problem(name, f"it does not describe a {model.name}: {_reason(error)}")
        return None


def _load(model: type[ModelMixin], folder: Path) -> ModelMixin:
    try:
        loaded, info = model.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise SourceError(f"the {model.__name__} in {folder} cannot be loaded: {_reason(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise SourceError(
            f"the weights in {folder} lack {len(missing)} of the tensors its config.json asks for, "
            f"such as '{missing[0]}'; get the files again"
        )
    return loaded


def _check_schedule(found: Described) -> None:
    config, schedulers = found.given["scheduler"], found.layout.schedulers
    for key, message in schedulers.problems(config):
        found.problem(f"scheduler.{key}", message)
    if not found.is_sound("scheduler"):
        return
    try:
        made = [*schedulers.tried(config)]
    except Exception as error:  # as in `_make`
        found.problem("scheduler", f"it does not describe a noise schedule: {_reason(error)}")
        return
    betas = [getattr(scheduler, "betas", torch.zeros(1)) for scheduler in made]
    if not all(bool(((table >= 0) & (table <= 1)).all()) for table in betas):
        found.problem("scheduler", "its betas make no noise schedule; each is from 0 to 1")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"
