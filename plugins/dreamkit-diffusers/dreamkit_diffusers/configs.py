"""The configs of a latent-diffusion model, from a folder in diffusers' layout or a recipe's `config`; their checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from dreamkit import (
    ConfigError,
    PartConfig,
    SourceError,
    describe_error,
    describe_value,
    did_you_mean,
    excerpt,
    locate,
    read_json,
    stored_weights,
)
from dreamkit_diffusers.keys import AVERAGING, Fixed
from dreamkit_diffusers.networks import Network
from dreamkit_diffusers.schedulers import Schedulers, draws_finite
from dreamkit_diffusers.values import count_error, difference, is_count

KNOWN = "pkg:dreamkit_diffusers/known"  # config files of well-known hub models
MAX_LAYERS = 100  # of a block; making them takes time, even without weights


@dataclass(frozen=True)
class Layout:
    """The models of a kind of decoder, and the schedulers that fit its objective.

    `network` is the folder of the predicting network, and its name in the decoder. The other folders are `vae` and
    `scheduler`. `fixed` has values of the models' keys, by model, that this decoder fixes besides those of the class.
    """

    network: str
    predictor: Network
    vae: Network
    schedulers: Schedulers
    fixed: Mapping[str, Mapping[str, Fixed]] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, Network]:
        return {self.network: self.predictor, "vae": self.vae}

    @property
    def files(self) -> dict[str, str]:
        return {name: f"{name}/config.json" for name in self.models} | {
            "scheduler": "scheduler/scheduler_config.json"
        }


@dataclass(frozen=True)
class Configs:
    """The three configs of a section by name, and their problems: messages by the section's keys.

    `raw` has them as written, `values` has defaults filled in. `folder` is their source, or None for a recipe's
    `config`.
    """

    layout: Layout
    folder: Path | None
    raw: dict[str, dict[str, Any]]
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        return {name: {**model.defaults, **self.raw[name]} for name, model in self.layout.models.items()}

    def add_problem(self, key: str, message: str | None) -> None:
        """Add a message about a value, such as `unet.sample_size`; None adds nothing.

        A recipe's value keeps its first message. All messages about a folder are joined under `pretrained`.
        """
        if message is None:
            return
        if self.folder is None:
            self.problems.setdefault(f"config.{key}", message)
            return
        name, _, inner = key.partition(".")
        located = (
            f"{self.folder}/{self.layout.files[name]}: {f'{excerpt(inner)}: ' if inner else ''}{message}"
        )
        earlier = self.problems.get("pretrained")
        self.problems["pretrained"] = located if earlier is None else f"{earlier}; {located}"

    def is_valid(self, name: str) -> bool:
        """Return True if the config `name` has no problem yet."""
        key = "pretrained" if self.folder is not None else f"config.{name}"
        return not any(f"{problem}.".startswith(f"{key}.") for problem in self.problems)

    def raise_problems(self) -> None:
        """Raise the problems, if any.

        Raises:
            SourceError: all problems are a folder's.
            ConfigError: a setting or a value of `config` is invalid.
        """
        if self.problems.keys() == {"pretrained"}:
            raise SourceError(self.problems["pretrained"])
        if self.problems:
            raise ConfigError(self.problems)

    def build_models(self) -> dict[str, Any]:
        """Build the models by name with random weights from torch's global generator.

        Raises:
            ConfigError: diffusers cannot build a model from its config.
        """
        models = {name: self.build(name) for name in self.layout.models}
        self.raise_problems()
        return models

    def load_models(self, *, as_stored: bool = False) -> dict[str, Any] | None:
        """Load the models by name from the folder, in float32 or in the types in which their weights are stored.

        Return None if the weights of a model are not stored in one type that can be mapped, at most of 32 bits.

        Raises:
            SourceError: weights are damaged or missing.
        """
        assert self.folder is not None, "only a folder has weights"
        folders = {name: self.folder / name for name in self.layout.models}
        types = dict.fromkeys(folders, torch.float32)
        for name, folder in folders.items() if as_stored else ():
            stored = stored_weights(folder)
            # constructors sample some parameters, which uses other random numbers in float64
            if stored is None or stored.dtype == torch.float64:
                return None
            types[name] = stored.dtype
        return {name: model.load(folders[name], types[name]) for name, model in self.layout.models.items()}

    def build(self, name: str) -> Any:
        """Build a model with random weights; on an error, add a problem and return None."""
        model = self.layout.models[name]
        try:
            return model.model_class.from_config(self.raw[name])
        except Exception as error:  # diffusers raises any type of error about a wrong value
            self.add_problem(name, f"cannot build a {model.name}: {describe_error(error)}")
            return None


def read_configs(layout: Layout, config: PartConfig, *, weights: bool = False) -> Configs:
    """Read and check the configs of a section.

    The models of a recipe's `config` are also built on the meta device, so `problems` is complete. Those of a folder
    are not: building them imports diffusers' networks.

    Raises:
        ConfigError: the folder, a file or a config is missing; with `weights`, also if weights are missing.
    """
    if config.pretrained is not None and config.config is not None:
        raise ConfigError({"": "expected either 'pretrained' or 'config', got both; remove either"})
    if config.pretrained is not None:
        _check_known(layout, config)
        folder = locate(config.pretrained, list(layout.files.values()), weights=weights, known=KNOWN)
        configs = Configs(
            layout, folder, {name: read_json(folder / file) for name, file in layout.files.items()}
        )
    elif config.config is not None:
        configs = _from_recipe(layout, {"scheduler": {}, **config.config})
    else:
        raise ConfigError({"": "missing 'pretrained' or 'config': name weights or configure random ones"})
    for name, model in layout.models.items():
        _check_class(configs, name, model)
        fixed = {**model.keys.fixed, **layout.fixed.get(name, {})}
        _check_values(configs, name, model.defaults, set(model.keys), fixed)
        _check_blocks(configs, name)
        if configs.folder is None and configs.is_valid(name):
            with torch.device("meta"):
                configs.build(name)
    _check_schedule(configs)
    return configs


def _from_recipe(layout: Layout, sections: Mapping[str, Any]) -> Configs:
    """Check the sections' names, types and keys.

    Raises:
        ConfigError: a section is missing or has another type.
    """
    valid = {name: sections[name] for name in layout.files if isinstance(sections.get(name), Mapping)}
    configs = Configs(layout, None, {name: dict(valid.get(name, {})) for name in layout.files})
    for key in sections:
        if key not in layout.files:
            configs.add_problem(key, f"unknown key '{key}'; {did_you_mean(key, layout.files)}")
    for name, file in layout.files.items():
        if name not in sections:
            configs.add_problem(name, f"missing '{name}': set the values of a {file}")
        elif name not in valid:
            configs.add_problem(
                name, f"expected a section with the values of a {file}, got {describe_value(sections[name])}"
            )
    if len(valid) < len(layout.files):
        configs.raise_problems()
    return configs


def _check_known(layout: Layout, config: PartConfig) -> None:
    """Refuse a well-known model of another layout before the hub is searched for missing files.

    Raises:
        SourceError: the model has no folder for this layout's network.
    """
    assert config.pretrained is not None
    folder = Path(__file__).parent / "known" / config.pretrained
    if not config.is_local and folder.is_dir() and not (folder / layout.network).is_dir():
        names = ", ".join(sorted(f"{path.name}/" for path in folder.iterdir()))
        raise SourceError(
            f"expected a folder {layout.network}/ in '{config.pretrained}', got {names}; "
            "name an image decoder made for this model"
        )


def _check_values(
    configs: Configs,
    name: str,
    defaults: Mapping[str, Any],
    supported: Collection[str],
    fixed: Mapping[str, Fixed],
    foreign: Collection[str] = (),
) -> None:
    """Check that each key is `supported` and has no value that is excluded by `fixed`.

    `defaults` are the keys of the installed class. A new release may have keys that are not supported yet; they must
    have their defaults. `foreign` are keys of other classes, which the class ignores. diffusers only warns about
    unknown keys. It writes keys that start with `_` itself.
    """
    for key, value in configs.raw[name].items():
        if str(key).startswith("_"):
            continue
        if key in fixed:
            if not fixed[key].accepts(value):
                message = difference(fixed[key].values[0], value)
                configs.add_problem(f"{name}.{key}", f"{message}; {fixed[key].remedy}")
        elif key in defaults:
            if key not in supported and value != defaults[key]:
                message = difference(defaults[key], value)
                remedy = (
                    f"dreamkit-diffusers does not support this key of diffusers {diffusers.__version__} yet"
                )
                configs.add_problem(f"{name}.{key}", f"{message}; {remedy}")
        elif key in foreign:
            continue
        elif configs.folder is None:
            hint = did_you_mean(key, {*defaults, *foreign})
            configs.add_problem(f"{name}.{key}", f"unknown key '{excerpt(key)}'; {hint}")
        elif value is not None and key not in AVERAGING:
            message = f"unknown key '{excerpt(key)}', which diffusers {diffusers.__version__} would ignore"
            configs.add_problem(f"{name}.{key}", f"{message}; update diffusers or name another source")


def _check_class(configs: Configs, name: str, model: Network) -> None:
    class_name = configs.raw[name].get("_class_name", model.name)
    if class_name != model.name:
        message = f"expected class '{model.name}', got '{excerpt(str(class_name))}'; name another source"
        configs.add_problem(f"{name}._class_name", message)


def _check_blocks(configs: Configs, name: str) -> None:
    """Check values that take too long to build, or whose errors in diffusers name no key."""
    values = configs.values[name]
    channels, groups = values.get("block_out_channels"), values.get("norm_num_groups")
    if is_count(groups) and isinstance(channels, list | tuple):
        indivisible = [width for width in channels if is_count(width) and width % groups]
        if indivisible:
            message = f"expected a divisor of all block_out_channels, got {groups}; it does not divide {indivisible[0]}"
            configs.add_problem(f"{name}.norm_num_groups", message)
    for key in ("cross_attention_dim", "joint_attention_dim", "caption_channels", "patch_size"):
        configs.add_problem(f"{name}.{key}", count_error(values.get(key, 1)))
    for key, value in configs.raw[name].items():
        too_many = [number for number in _numbers(value) if number > MAX_LAYERS]
        if too_many and (key.endswith("layers_per_block") or key == "num_layers"):
            configs.add_problem(f"{name}.{key}", f"expected at most {MAX_LAYERS}, got {too_many[0]}")


def _numbers(value: Any) -> list[float]:
    """Return all numbers in a value, which may be lists of lists."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _check_schedule(configs: Configs) -> None:
    config, schedulers = configs.raw["scheduler"], configs.layout.schedulers
    defaults, supported, foreign = schedulers.keys(config, recipe=configs.folder is None)
    _check_values(configs, "scheduler", defaults, supported, schedulers.fixed, foreign)
    for key, message in schedulers.problems(config):
        configs.add_problem(f"scheduler.{key}", message)
    if not configs.is_valid("scheduler"):
        return
    try:
        built = schedulers.create(None, config), schedulers.for_training(config)
    except Exception as error:  # diffusers raises any type of error about a wrong value
        configs.add_problem("scheduler", f"cannot build a noise schedule: {describe_error(error)}")
        return
    for scheduler in built:
        betas = getattr(scheduler, "betas", torch.zeros(1))
        invalid = betas[~((betas >= 0) & (betas <= 1))]
        if invalid.numel():
            configs.add_problem("scheduler", f"expected betas from 0 to 1, got {invalid[0].item():.4g}")
    if not configs.is_valid("scheduler"):
        return
    try:
        is_finite = draws_finite(built[0])
    except Exception as error:
        configs.add_problem(
            "scheduler", f"cannot draw with {type(built[0]).__name__}: {describe_error(error)}"
        )
        return
    if not is_finite:
        configs.add_problem(
            "scheduler", f"expected finite latents, got NaN or inf from {type(built[0]).__name__}"
        )
