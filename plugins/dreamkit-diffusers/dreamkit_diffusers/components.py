"""UNet, VAE and noise schedule of a latent-diffusion model, from a folder of diffusers or small dicts."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin, UNet2DConditionModel

from dreamkit import ConfigError, DreamkitError, PartConfig, SourceError, did_you_mean, locate
from dreamkit_diffusers.schedulers import own_scheduler, scheduler_class, scheduler_keys

Model = TypeVar("Model", bound=ModelMixin)

FILES = {"unet": "unet/config.json", "vae": "vae/config.json", "scheduler": "scheduler/scheduler_config.json"}
MODELS: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
MAX_LAYERS = 100  # of a block; making them takes time, even without weights
MAX_TIMESTEPS = 100_000


@dataclass(frozen=True)
class Components:
    """`schedule` adds noise in training; `schedule_config` is the scheduler's config as it was given."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    schedule: DDPMScheduler
    schedule_config: dict[str, Any]


@dataclass(frozen=True)
class Described:
    """The three configs by name, as they were `given` and with defaults in `values`, and what is wrong with them.

    `folder` is the one they are from, or None where they are a recipe's `config`.
    """

    folder: Path | None
    given: dict[str, dict[str, Any]]
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        return {name: _defaults(model) | self.given[name] for name, model in MODELS.items()}

    def problem(self, key: str, message: str) -> None:
        """Something wrong with a value, such as `unet.sample_size`. Those of a folder are all told of its name."""
        if self.folder is None:
            self.problems.setdefault(f"config.{key}", message)
        else:
            name, _, inner = key.partition(".")
            told = f"{self.folder}/{FILES[name]}: {f'{inner}: ' if inner else ''}{message}"
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


def described(config: PartConfig, *, weights: bool = False) -> Described:
    """The configs of a section, each of which was made on the meta device, so that its `problems` are all there are.

    Raises:
        ConfigError: there is no such folder, a file or config is missing, or, with `weights`, the weights are.
    """
    if (config.pretrained is None) == (config.config is None):
        raise ConfigError(
            {"": f"pretrained is {config.pretrained!r} and config is {config.config!r}; give exactly one"}
        )
    if config.pretrained is not None:
        folder = locate(config.pretrained, list(FILES.values()), weights=weights)
        found = Described(folder, {name: _read(folder / file) for name, file in FILES.items()})
    else:
        given: dict[str, Any] = {"scheduler": {}, **(config.config or {})}
        found = Described(None, {name: dict(_mapping(given.get(name))) for name in FILES})
        _check_keys(found, "", given, FILES)
        for name in FILES:
            if not isinstance(given.get(name), Mapping):
                said = f"{given[name]!r} found" if name in given else "missing"
                found.problem(name, f"{said}, but a section of the values of a {FILES[name]} is wanted")
        for name, model in MODELS.items():
            _check_keys(found, name, found.given[name], _arguments(model))
        _check_keys(found, "scheduler", found.given["scheduler"], scheduler_keys())
        if not all(isinstance(given.get(name), Mapping) for name in FILES):
            found.raise_any()
    for name, model in MODELS.items():
        _check_class(found, name, model)
        _check_blocks(found, name)
        if found.is_sound(name):
            _try(found, name, model)
    _check_schedule(found)
    return found


def random(found: Described, device: str | None = None) -> Components:
    """The components with random weights, drawn from torch's global generator."""
    with nullcontext() if device is None else torch.device(device):
        unet, vae = (MODELS[name].from_config(found.given[name]) for name in MODELS)
    return Components(unet, vae, *_schedule(found))


def pretrained(found: Described) -> Components:
    """The components with the weights of a folder, in float32.

    Raises:
        SourceError: weights are damaged, or some are missing.
    """
    assert found.folder is not None, "only a folder has weights"
    unet, vae = (_load(model, found.folder / name) for name, model in MODELS.items())
    return Components(unet, vae, *_schedule(found))


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


def _arguments(model: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model).parameters


def _defaults(model: type) -> dict[str, Any]:
    return {name: argument.default for name, argument in _arguments(model).items()}


def _check_keys(found: Described, name: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """diffusers only warns of keys it does not know; those that start with `_` it writes itself."""
    known = set(known)
    for key in given:
        if key not in known and not str(key).startswith("_"):
            found.problem(
                f"{name}.{key}" if name else key, f"unknown key '{key}'; {did_you_mean(key, known)}"
            )


def _check_class(found: Described, name: str, model: type) -> None:
    named = found.given[name].get("_class_name", model.__name__)
    if named != model.__name__:
        message = f"it is of class '{named}', but '{model.__name__}' is wanted; name another source"
        found.problem(f"{name}._class_name", message)


def _check_blocks(found: Described, name: str) -> None:
    """What would take for ever, or what diffusers would refuse without a word of which value it was."""
    values = found.values[name]
    channels, groups = values["block_out_channels"], values["norm_num_groups"]
    if is_count(groups) and isinstance(channels, list | tuple):
        odd = [width for width in channels if is_count(width) and width % groups]
        if odd:
            message = f"{groups} found, but block_out_channels has {odd[0]}, which {groups} does not divide"
            found.problem(f"{name}.norm_num_groups", message)
    width = values.get("cross_attention_dim", 1)
    if not is_count(width):
        found.problem(f"{name}.cross_attention_dim", f"{width!r} found, but a whole number from 1 is wanted")
    for key, value in found.given[name].items():
        many = [number for number in _numbers(value) if number > MAX_LAYERS]
        if many and key.endswith("layers_per_block"):
            found.problem(f"{name}.{key}", f"{many[0]} found, but at most {MAX_LAYERS} is wanted")


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _numbers(value: Any) -> list[float]:
    """All the numbers in a value, which may be lists of lists."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _try(found: Described, name: str, model: Any) -> None:
    try:
        with torch.device("meta"):
            model.from_config(found.given[name])
    # whatever a mistaken value makes diffusers raise, which can be anything
    except Exception as error:
        found.problem(name, f"it does not describe a {model.__name__}: {_reason(error)}")


def _load(model: type[Model], folder: Path) -> Model:
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
    given = found.given["scheduler"]
    steps, named = given.get("num_train_timesteps", 1), given.get("_class_name")
    if not is_count(steps) or steps > MAX_TIMESTEPS:
        message = f"{steps!r} found, but a whole number from 1 to {MAX_TIMESTEPS} is wanted"
        found.problem("scheduler.num_train_timesteps", message)
    kind = given.get("prediction_type", PREDICTIONS[0])
    if kind not in PREDICTIONS:
        message = (
            f"{kind!r} found, but {' or '.join(PREDICTIONS)} is wanted; {did_you_mean(kind, PREDICTIONS)}"
        )
        found.problem("scheduler.prediction_type", message)
    if named is not None:
        try:
            scheduler_class(named)
        except DreamkitError as error:
            found.problem("scheduler._class_name", str(error))
    if found.is_sound("scheduler"):
        try:
            schedule, config = _schedule(found)
            own_scheduler(config)
        except Exception as error:  # as in `_try`
            found.problem("scheduler", f"it does not describe a noise schedule: {_reason(error)}")
            return
        if not all(0 <= float(beta) <= 1 for beta in schedule.betas):
            found.problem("scheduler", "its betas make no noise schedule; each is from 0 to 1")


def _schedule(found: Described) -> tuple[DDPMScheduler, dict[str, Any]]:
    # Some schedulers have no such setting. DDPM's default clips latents, which are not pixels, to [-1, 1].
    values = {"clip_sample": False, **found.given["scheduler"]}
    return DDPMScheduler.from_config(values), values


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"
