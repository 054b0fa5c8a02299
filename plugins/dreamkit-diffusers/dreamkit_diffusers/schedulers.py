"""diffusers' schedulers by name, for each objective, created from one config.

A class is imported on use: some import scipy.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
from diffusers.schedulers import KarrasDiffusionSchedulers

from dreamkit import DreamkitError, did_you_mean
from dreamkit_diffusers.values import count_error, describe_value, number_error

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

MAX_TIMESTEPS = 100_000

Table = dict[str, tuple[str, dict[str, Any]]]


class Schedulers(ABC):
    """The schedulers of one objective.

    `table` maps a recipe's name to a class name and to the settings that replace the config's. `class_names` are the
    classes that a config may name, if `accepts` agrees.
    """

    objective: ClassVar[str]
    default: ClassVar[str]  # a class name
    table: ClassVar[Table]
    class_names: ClassVar[Sequence[str]]

    def accepts(self, class_name: str) -> bool:
        """Return True if a config may name this class."""
        return class_name in self.class_names

    @abstractmethod
    def value_problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the key and the message of each value that does not fit the objective."""

    @abstractmethod
    def settings_for(self, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a config for a class, whichever class wrote them; other keys are ignored."""

    def keys(self) -> set[str]:
        """Return all keys that a config may have: one file serves many classes, each with its own keys."""
        return {key for name in self.class_names if self.accepts(name) for key in _parameters(name)}

    def problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the key and the message of each invalid value of a config."""
        error = count_error(config.get("num_train_timesteps", 1), MAX_TIMESTEPS)
        if error is not None:
            yield "num_train_timesteps", error
        class_name = config.get("_class_name", self.default)
        if self.accepts(class_name):
            yield from self.value_problems(config)
        else:
            known = [name for name in self.class_names if self.accepts(name)]
            message = f"expected a scheduler class for {self.objective}, got '{class_name}'"
            yield "_class_name", f"{message}; {did_you_mean(class_name, known)}"

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
            message = f"expected a scheduler for {self.objective}, got '{name}'"
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
    class_names = tuple(KarrasDiffusionSchedulers.__members__)
    prediction_types = ("epsilon", "v_prediction", "sample")

    def accepts(self, class_name: str) -> bool:
        return super().accepts(class_name) and "beta_schedule" in _parameters(class_name)

    def value_problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        kind = config.get("prediction_type", "epsilon")
        if kind not in self.prediction_types:
            expected = ", ".join(self.prediction_types)
            yield "prediction_type", f"expected one of {expected}, got {describe_value(kind)}"

    def settings_for(self, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        # These classes read each other's configs. Some have no such key, and DDPM's default clips latents, which are
        # not pixels, to [-1, 1].
        return {"clip_sample": False, **config}


class FlowSchedulers(Schedulers):
    """Schedulers along straight lines from noise to image; the model predicts their direction (arXiv 2210.02747)."""

    objective = "flow matching"
    default = "FlowMatchEulerDiscreteScheduler"
    table: ClassVar[Table] = {
        "flow-match-euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "unipc": ("UniPCMultistepScheduler", {}),
    }
    class_names = tuple(class_name for class_name, _ in table.values())
    # turn a scheduler over betas into one of flow matching
    flow_settings: ClassVar[dict[str, Any]] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    # Spacings of sigmas that a class computes from betas. Along straight lines it would draw NaN.
    unsupported_spacings: ClassVar[dict[str, tuple[str, ...]]] = {
        "DPMSolverMultistepScheduler": ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
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
        if config.get("use_dynamic_shifting"):
            message = (
                f"expected false, got {describe_value(config['use_dynamic_shifting'])}; set a fixed shift"
            )
            yield "use_dynamic_shifting", message

    def shift(self, config: Mapping[str, Any]) -> float:
        """Return the shift towards noisy times: sigma becomes shift sigma / (1 + (shift - 1) sigma)."""
        is_default = config.get("_class_name", self.default) == self.default
        return float(config.get("shift" if is_default else "flow_shift", 1.0))

    def settings_for(self, class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        shift = self.shift(config)
        settings = {**config, "shift": shift, "flow_shift": shift, **self.flow_settings}
        unsupported = self.unsupported_spacings.get(class_name, ())
        return {key: value for key, value in settings.items() if key not in unsupported}


def _parameters(class_name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(diffusers, class_name)).parameters


def _create(class_name: str, settings: Mapping[str, Any], **fixed: Any) -> SchedulerMixin:
    # diffusers would import all of its schedulers for a key of another class
    known = _parameters(class_name)
    own = {key: value for key, value in settings.items() if key in known}
    return getattr(diffusers, class_name).from_config(own, **fixed)


NOISE, FLOW = NoiseSchedulers(), FlowSchedulers()
