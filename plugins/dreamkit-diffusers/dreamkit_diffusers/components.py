"""UNet, VAE and noise schedule of a latent-diffusion model, from a folder of diffusers or small dicts."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, ModelMixin, UNet2DConditionModel

from dreamkit import DreamkitError, PartConfig, SourceError, did_you_mean, locate
from dreamkit_diffusers.schedulers import own_scheduler, scheduler_keys

Model = TypeVar("Model", bound=ModelMixin)

FILES = {"unet": "unet/config.json", "vae": "vae/config.json", "scheduler": "scheduler/scheduler_config.json"}


@dataclass(frozen=True)
class Components:
    """`schedule` adds noise in training; `schedule_config` is the scheduler's config as it was given."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    schedule: DDPMScheduler
    schedule_config: dict[str, Any]
    where: str


def outline(config: PartConfig) -> Components:
    """The components on the meta device, from config files alone.

    Raises:
        SourceError: files are missing, or a config is not one of a model that dreamkit knows.
    """
    return _random(config, torch.device("meta"))


def random(config: PartConfig) -> Components:
    """The components with random weights, drawn from torch's global generator."""
    return _random(config, None)


def pretrained(config: PartConfig) -> Components:
    """The components with the weights of `config.pretrained`, in float32.

    Raises:
        SourceError: as `outline`, or weights are missing or damaged.
    """
    if config.pretrained is None:
        raise SourceError("there are no weights to load without `pretrained`: name a folder or a hub model")
    configs, where = _configs(config)
    schedule, schedule_config = _schedule(configs["scheduler"], where)
    folder = locate(config.pretrained, list(FILES.values()), weights=True)
    _check_class(UNet2DConditionModel, configs["unet"], f"{where}/{FILES['unet']}")
    _check_class(AutoencoderKL, configs["vae"], f"{where}/{FILES['vae']}")
    unet, vae = _load(UNet2DConditionModel, folder / "unet"), _load(AutoencoderKL, folder / "vae")
    return Components(unet, vae, schedule, schedule_config, where)


def _random(config: PartConfig, device: torch.device | None) -> Components:
    configs, where = _configs(config)
    schedule, schedule_config = _schedule(configs["scheduler"], where)
    with nullcontext() if device is None else device:
        unet = _build(UNet2DConditionModel, configs["unet"], _place(where, "unet"))
        vae = _build(AutoencoderKL, configs["vae"], _place(where, "vae"))
    return Components(unet, vae, schedule, schedule_config, where)


def _configs(config: PartConfig) -> tuple[dict[str, dict[str, Any]], str]:
    """The three configs by name, and where they are from."""
    if (config.pretrained is None) == (config.config is None):
        raise SourceError(
            f"pretrained is {config.pretrained!r} and config is {config.config!r}; give exactly one"
        )
    if config.pretrained is not None:
        folder = locate(config.pretrained, list(FILES.values()), weights=False)
        return {name: _read(folder / file) for name, file in FILES.items()}, str(folder)
    given: dict[str, Any] = {"scheduler": {}, **(config.config or {})}
    _check_keys(given, FILES, "config")
    for name in FILES:
        if not isinstance(given.get(name), Mapping):
            found = repr(given[name]) if name in given else "missing"
            raise SourceError(
                f"config.{name} is {found}, but must be a dict of the values of a {FILES[name]}"
            )
    _check_keys(given["unet"], _arguments(UNet2DConditionModel), "config.unet")
    _check_keys(given["vae"], _arguments(AutoencoderKL), "config.vae")
    _check_keys(given["scheduler"], scheduler_keys(), "config.scheduler")
    return {name: dict(given[name]) for name in FILES}, "config"


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{file} holds a {type(values).__name__}, but a config is a JSON object")
    return values


def _place(where: str, name: str) -> str:
    return f"config.{name}" if where == "config" else f"{where}/{FILES[name]}"


def _arguments(model: type) -> set[str]:
    return set(inspect.signature(model).parameters)


def _check_keys(given: Mapping[str, Any], known: Any, where: str) -> None:
    """diffusers only warns of keys it does not know; those that start with `_` it writes itself."""
    for key in given:
        if key not in known and not str(key).startswith("_"):
            raise SourceError(f"{where} has an unknown key '{key}'; {did_you_mean(key, known)}")


def _check_class(model: type, values: Mapping[str, Any], where: str) -> None:
    named = values.get("_class_name", model.__name__)
    if named != model.__name__:
        raise SourceError(
            f"{where} is of class '{named}', but '{model.__name__}' is wanted; name another source"
        )


def _build(model: type[Model], values: dict[str, Any], where: str) -> Model:
    _check_class(model, values, where)
    try:
        return model.from_config(values)
    # whatever a mistaken value makes diffusers raise, which can be anything
    except Exception as error:
        raise SourceError(f"{where} does not describe a {model.__name__}: {_reason(error)}") from error


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


def _schedule(values: dict[str, Any], where: str) -> tuple[DDPMScheduler, dict[str, Any]]:
    # Some schedulers have no such setting. DDPM's default clips latents, which are not pixels, to [-1, 1].
    values = {"clip_sample": False, **values}
    place = _place(where, "scheduler")
    try:
        schedule = DDPMScheduler.from_config(values)
        own_scheduler(values, place)
    except DreamkitError:
        raise
    except Exception as error:
        raise SourceError(f"{place} does not describe a noise schedule: {_reason(error)}") from error
    kinds = ("epsilon", "v_prediction", "sample")
    kind = schedule.config.prediction_type
    if kind not in kinds:
        raise SourceError(f"{place} has prediction_type '{kind}'; {did_you_mean(kind, kinds)}")
    return schedule, values


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"
