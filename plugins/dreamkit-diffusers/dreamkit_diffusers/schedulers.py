"""diffusers' schedulers by name, for each objective, created from one config.

A class is imported on use: some import scipy.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
import torch

from dreamkit import DreamkitError, describe_value, did_you_mean, excerpt
from dreamkit_diffusers import keys
from dreamkit_diffusers.values import count_error, number_error, numbers_error

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

MAX_TIMESTEPS = 100_000

# the methods of scheduler classes, by a part of their names, that no image decoder supports
OTHER_METHODS = {
    "EDM": "no image decoder of this plug-in scales inputs and outputs as EDM models need (arXiv 2206.00364); name "
    "another source",
    "LCM": "it draws from models distilled to a few steps (LCM); name the model that it was distilled from",
    "TCD": "it draws from models distilled to a few steps (TCD); name the model that it was distilled from",
}

# the keys that decide the noise of each timestep, in training and when drawing
NOISE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")

Table = dict[str, tuple[str, dict[str, Any]]]


class Schedulers(ABC):
    """The schedulers of one objective.

    `table` maps a recipe's name to a class name and to the settings that replace the config's. `class_keys` maps each
    class that a config may name to its keys. `fixed` are values of keys with which the objective is right.
    """

    objective: ClassVar[str]
    default: ClassVar[str]  # a class name
    table: ClassVar[Table]
    class_keys: ClassVar[Mapping[str, Collection[str]]]
    fixed: ClassVar[Mapping[str, keys.Fixed]]

    def accepts(self, class_name: Any) -> bool:
        """Return True if a config may name this class."""
        return isinstance(class_name, str) and class_name in self.class_keys

    @abstractmethod
    def value_problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the key and the message of each value that does not fit the objective."""

    @abstractmethod
    def settings_for(self, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a config for a class, whichever class wrote them; other keys are ignored."""

    def keys(
        self, config: Mapping[str, Any], *, recipe: bool
    ) -> tuple[Mapping[str, Any], Collection[str], Collection[str]]:
        """Return the defaults of the config's class, its supported keys, and keys of other classes.

        One file serves many classes, each with its own keys. diffusers also writes into a file the keys of the class
        that the config had before, which may be any. A `recipe` may have the keys of this objective's classes alone.
        """
        class_name = config.get("_class_name", self.default)
        own = class_name if self.accepts(class_name) else self.default
        foreign = {*self.fixed}.union(*self.class_keys.values())
        names = self.class_keys if recipe else [name for name in dir(diffusers) if name.endswith("Scheduler")]
        defaults = _defaults(own)
        known = foreign | defaults.keys()
        if any(key not in known for key in config if not key.startswith("_")):
            foreign |= {key for name in names for key in _parameters(name)}  # imports the classes
        return defaults, self.class_keys[own], foreign

    def problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the key and the message of each invalid value of a config."""
        error = count_error(config.get("num_train_timesteps", 1), MAX_TIMESTEPS)
        if error is not None:
            yield "num_train_timesteps", error
        class_name = config.get("_class_name", self.default)
        if self.accepts(class_name):
            if error is None:
                yield from _table_problems({**_defaults(class_name), **config})
            yield from self.value_problems(config)
        else:
            message = f"expected a scheduler class for {self.objective}, got '{excerpt(str(class_name))}'"
            yield "_class_name", f"{message}; {self._class_remedy(str(class_name))}"

    def _class_remedy(self, class_name: str) -> str:
        """Return what to do about a class of another method; one that diffusers lacks is misspelled."""
        for part, remedy in OTHER_METHODS.items():
            if part in class_name:
                return remedy
        if hasattr(diffusers, class_name):
            return f"name another source, or one of {', '.join(sorted(self.class_keys))}"
        return did_you_mean(class_name, self.class_keys)

    def for_training(self, config: Mapping[str, Any]) -> Any:
        """Create a scheduler of the default class, whichever class the config names."""
        return _create(self.default, self.settings_for(self.default, config))

    def create(self, name: str | None, config: Mapping[str, Any]) -> SchedulerMixin:
        """Create a scheduler by its name in a recipe; None: of the config's own class.

        Raises:
            DreamkitError: no scheduler of this objective has the name.
        """
        if name is None:
            class_name = config.get("_class_name", self.default)
            return _create(class_name, self.settings_for(class_name, config))
        if name not in self.table:
            message = f"expected a scheduler for {self.objective}, got '{excerpt(name)}'"
            raise DreamkitError(f"{message}; {did_you_mean(name, self.table)}")
        class_name, fixed = self.table[name]
        return _create(class_name, self.settings_for(class_name, config), **fixed)


class NoiseSchedulers(Schedulers):
    """Schedulers over a table of betas, for models that predict noise as in DDPM (arXiv 2006.11239)."""

    objective = "denoising over a noise schedule"
    default = "DDPMScheduler"
    table: ClassVar[Table] = {
        "ddpm": ("DDPMScheduler", {}),
        "ddim": ("DDIMScheduler", {}),
        "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "unipc": ("UniPCMultistepScheduler", {}),
        "euler": ("EulerDiscreteScheduler", {}),
    }
    class_keys = keys.NOISE_SCHEDULERS
    fixed = keys.NOISE_FIXED
    prediction_types = ("epsilon", "v_prediction", "sample")

    def create(self, name: str | None, config: Mapping[str, Any]) -> SchedulerMixin:
        return _within_table(super().create(name, config))

    def value_problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        kind = config.get("prediction_type", "epsilon")
        if kind not in self.prediction_types:
            expected = ", ".join(self.prediction_types)
            yield "prediction_type", f"expected one of {expected}, got {describe_value(kind)}"
        class_name, key = config.get("_class_name", self.default), "rescale_betas_zero_snr"
        if config.get(key) and key not in self.class_keys[class_name]:
            message = f"expected false with '{class_name}', which draws without it"
            yield key, f"{message}, got {describe_value(config[key])}; set false"

    def settings_for(self, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        # These classes read each other's configs. Some have no such key, and DDPM's default clips latents, which are
        # not pixels, to [-1, 1].
        # Defaults of betas differ too, and training must add the noise that the config's own class removes.
        defaults = _defaults(config.get("_class_name", self.default))
        return {"clip_sample": False, **{key: defaults[key] for key in NOISE_KEYS}, **config}


class FlowSchedulers(Schedulers):
    """Schedulers along straight lines from noise to image; the model predicts their direction (arXiv 2210.02747)."""

    objective = "flow matching"
    default = "FlowMatchEulerDiscreteScheduler"
    table: ClassVar[Table] = {
        "flow-match-euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "unipc": ("UniPCMultistepScheduler", {}),
    }
    class_keys = keys.FLOW_SCHEDULERS
    fixed = keys.FLOW_FIXED
    # turn a scheduler over betas into one of flow matching
    flow_settings: ClassVar[dict[str, Any]] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    # Spacings of sigmas that a class computes from betas. Along straight lines it would draw NaN.
    unsupported_spacings: ClassVar[dict[str, tuple[str, ...]]] = {
        "DPMSolverMultistepScheduler": (
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
        ),
        "UniPCMultistepScheduler": ("use_exponential_sigmas", "use_beta_sigmas"),
    }

    def value_problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        class_name = config.get("_class_name", self.default)
        if class_name != self.default:
            for key, expected in self.flow_settings.items():
                if config.get(key) != expected:
                    message = f"expected {describe_value(expected)} for flow matching, got"
                    yield key, f"{message} {describe_value(config.get(key))}"
        for key in self.unsupported_spacings.get(class_name, ()):
            if config.get(key):
                message = f"expected false with '{class_name}' in flow matching"
                yield key, f"{message}, got {describe_value(config[key])}"
        for key in ("shift", "flow_shift"):
            error = number_error(config.get(key, 1.0))
            if error is not None:
                yield key, error

    def shift(self, config: Mapping[str, Any]) -> float:
        """Return the shift towards noisy times: sigma becomes shift sigma / (1 + (shift - 1) sigma)."""
        is_default = config.get("_class_name", self.default) == self.default
        return float(config.get("shift" if is_default else "flow_shift", 1.0))

    def settings_for(self, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        shift = self.shift(config)
        settings = {**config, "shift": shift, "flow_shift": shift, **self.flow_settings}
        unsupported = self.unsupported_spacings.get(class_name, ())
        return {key: value for key, value in settings.items() if key not in unsupported}


def draws_finite(scheduler: Any) -> bool:
    """Return True if a short drawing with a constant prediction has finite latents; use up the scheduler.

    Raises:
        Exception: the class does not support its settings; diffusers checks many only when drawing.
    """
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        # half of the timesteps at most: an offset may shift each of them
        scheduler.set_timesteps(max(1, min(4, scheduler.config.num_train_timesteps // 2)))
        latents = torch.ones(1, 4, 2, 2) * getattr(scheduler, "init_noise_sigma", 1.0)
        for timestep in scheduler.timesteps:
            noisy = scale_input(latents, timestep)
            latents = scheduler.step(noisy / 2, timestep, latents, return_dict=False, **options)[0]
    return bool(latents.isfinite().all())


def _table_problems(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the key and the message of each value that does not fit the number of timesteps."""
    betas = config.get("trained_betas")
    if betas is not None:
        error = numbers_error(betas, config["num_train_timesteps"], "timestep", positive=False)
        if error is not None:
            yield "trained_betas", f"{error}; set null, or num_train_timesteps to the length of the list"
    offset, last = config.get("steps_offset", 0), config["num_train_timesteps"] - 1
    if type(offset) is not int or not 0 <= offset <= last:
        yield "steps_offset", f"expected an integer from 0 to {last}, got {describe_value(offset)}"


def _within_table(scheduler: Any) -> Any:
    """Return `scheduler` with a `set_timesteps` that raises ValueError for timesteps after the last trained one.

    An offset may shift them there, if the steps are many. diffusers then fails when drawing, or draws with them.
    """
    set_timesteps, last = scheduler.set_timesteps, scheduler.config.num_train_timesteps - 1

    @wraps(set_timesteps)
    def set_within(*args: Any, **options: Any) -> None:
        set_timesteps(*args, **options)
        highest = scheduler.timesteps.max().item()
        if highest > last:
            offset = scheduler.config.get("steps_offset", 0)
            raise ValueError(
                f"expected timesteps up to {last}, got {highest:g} with steps_offset {offset}; use fewer steps or a "
                "smaller steps_offset"
            )

    scheduler.set_timesteps = set_within
    return scheduler


def _parameters(class_name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(diffusers, class_name)).parameters


def _defaults(class_name: str) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in _parameters(class_name).items()}


def _create(class_name: str, settings: Mapping[str, Any], **fixed: Any) -> SchedulerMixin:
    # not by `from_config`, which imports all compatible classes, and scipy with them
    known = _parameters(class_name)
    own = {key: value for key, value in settings.items() if key in known}
    return getattr(diffusers, class_name)(**{**own, **fixed})


NOISE, FLOW = NoiseSchedulers(), FlowSchedulers()
