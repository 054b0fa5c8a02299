"""Sampling schedulers by name, all of them diffusers' own: those that fit an objective, made from one config."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from dreamkit import DreamkitError, did_you_mean

MAX_TIMESTEPS = 100_000

Table = dict[str, tuple[type[SchedulerMixin], dict[str, Any]]]


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class Schedulers(ABC):
    """The schedulers that fit one objective.

    `objective` says it in words, and `table` has, by what a recipe writes, the class and what is set over the config.
    """

    objective: ClassVar[str]
    default: ClassVar[type[SchedulerMixin]]
    table: ClassVar[Table]
    sort: ClassVar[str]  # the classes that a config may name, in words

    @abstractmethod
    def classes(self) -> dict[str, type[SchedulerMixin]]:
        """diffusers' classes that a config may name, by name."""

    @abstractmethod
    def misfits(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What of a config makes no schedule of this objective: keys, and what is wrong with them."""

    @abstractmethod
    def settings(self, scheduler: type[SchedulerMixin], config: Mapping[str, Any]) -> dict[str, Any]:
        """The config in the words of a class, whichever class it was written for."""

    def keys(self) -> set[str]:
        """What a config may hold: one file serves many classes, and each takes its own keys."""
        return {key for found in self.classes().values() for key in inspect.signature(found).parameters}

    def problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """All that is wrong with the values of a config, by key."""
        steps, named = config.get("num_train_timesteps", 1), config.get("_class_name")
        if not is_count(steps) or steps > MAX_TIMESTEPS:
            message = f"{steps!r} found, but a whole number from 1 to {MAX_TIMESTEPS} is wanted"
            yield "num_train_timesteps", message
        if named is not None and named not in (known := self.classes()):
            yield (
                "_class_name",
                f"it is of class '{named}', but {self.sort} is wanted; {did_you_mean(named, known)}",
            )
        else:
            yield from self.misfits(config)

    def training(self, config: Mapping[str, Any]) -> Any:
        """A scheduler of the default class, whichever class the config names."""
        return self.default.from_config(self.settings(self.default, config))

    def own(self, config: Mapping[str, Any]) -> SchedulerMixin:
        """A fresh scheduler of the class that the config itself names, or else of the default one."""
        named = self.classes()[config.get("_class_name", self.default.__name__)]
        return named.from_config(self.settings(named, config))

    def named(self, name: str, config: Mapping[str, Any]) -> SchedulerMixin:
        """A fresh scheduler by dreamkit's name for it.

        Raises:
            DreamkitError: no such name, or one that does not fit the objective.
        """
        if name not in self.table:
            misfit = any(name in family.table for family in (NOISE, FLOW))
            said = (
                f"scheduler '{name}' does not fit the decoder's objective, {self.objective}; "
                f"{' or '.join(self.table)} does"
                if misfit
                else f"there is no scheduler '{name}'; {did_you_mean(name, self.table)}"
            )
            raise DreamkitError(said)
        scheduler, fixed = self.table[name]
        return scheduler.from_config(self.settings(scheduler, config), **fixed)


class NoiseSchedulers(Schedulers):
    """Those over a table of betas: what is trained takes noise out, as in DDPM (arXiv 2006.11239)."""

    objective = "denoising over a noise schedule"
    default = DDPMScheduler
    sort = f"one with a table of betas, such as '{default.__name__}',"
    table: ClassVar[Table] = {
        "ddpm": (DDPMScheduler, {}),
        "ddim": (DDIMScheduler, {}),
        "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        "unipc": (UniPCMultistepScheduler, {}),
        "euler": (EulerDiscreteScheduler, {}),
    }
    predictions = ("epsilon", "v_prediction", "sample")

    def classes(self) -> dict[str, type[SchedulerMixin]]:
        return {
            found.__name__: found
            for found in DDPMScheduler().compatibles
            if "beta_schedule" in inspect.signature(found).parameters
        }

    def misfits(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        kind = config.get("prediction_type", self.predictions[0])
        if kind not in self.predictions:
            yield (
                "prediction_type",
                f"{kind!r} found, but {' or '.join(self.predictions)} is wanted; "
                f"{did_you_mean(kind, self.predictions)}",
            )

    def settings(self, scheduler: type[SchedulerMixin], config: Mapping[str, Any]) -> dict[str, Any]:
        # These classes take each other's configs, but some have no such setting, and DDPM's default clips latents,
        # which are not pixels, to [-1, 1].
        return {"clip_sample": False, **config}


class FlowSchedulers(Schedulers):
    """Those along straight lines from noise to image: what is trained is their direction (arXiv 2210.02747)."""

    objective = "flow matching"
    default = FlowMatchEulerDiscreteScheduler
    table: ClassVar[Table] = {
        "flow-match-euler": (FlowMatchEulerDiscreteScheduler, {}),
        "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        "unipc": (UniPCMultistepScheduler, {}),
    }
    sort = " or ".join(f"'{found.__name__}'" for found, _ in table.values())
    # what makes a scheduler over betas one of flow matching
    along: ClassVar[dict[str, Any]] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    # ways of spacing sigmas that a class takes to be those of betas: along straight lines it would draw NaN
    unspaced: ClassVar[dict[str, tuple[str, ...]]] = {
        "DPMSolverMultistepScheduler": ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        "UniPCMultistepScheduler": ("use_exponential_sigmas", "use_beta_sigmas"),
    }

    def classes(self) -> dict[str, type[SchedulerMixin]]:
        return {found.__name__: found for found, _ in self.table.values()}

    def misfits(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if config.get("_class_name", self.default.__name__) != self.default.__name__:
            for key, wanted in self.along.items():
                if config.get(key) != wanted:
                    yield key, f"{config.get(key)!r} found, but {wanted!r} is wanted for flow matching"
        named = config.get("_class_name", self.default.__name__)
        for key in self.unspaced.get(named, ()):
            if config.get(key):
                said = f"{config[key]!r} found, but '{named}' cannot do so in flow matching; set it to false"
                yield key, said
        for key in ("shift", "flow_shift"):
            shift = config.get(key, 1.0)
            if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < float("inf"):
                yield key, f"{shift!r} found, but a positive number is wanted"
        if config.get("use_dynamic_shifting"):
            message = "true found, but only a fixed shift can be sampled with; set it to false, and shift"
            yield "use_dynamic_shifting", message

    def shift(self, config: Mapping[str, Any]) -> float:
        """By how much noisy times are favoured: sigma becomes shift sigma / (1 + (shift - 1) sigma)."""
        is_default = config.get("_class_name", self.default.__name__) == self.default.__name__
        return float(config.get("shift" if is_default else "flow_shift", 1.0))

    def settings(self, scheduler: type[SchedulerMixin], config: Mapping[str, Any]) -> dict[str, Any]:
        known = inspect.signature(scheduler).parameters
        told = {"shift": self.shift(config), "flow_shift": self.shift(config), **self.along}
        unknown = self.unspaced.get(scheduler.__name__, ())
        return {
            key: value for key, value in {**config, **told}.items() if key in known and key not in unknown
        }


NOISE, FLOW = NoiseSchedulers(), FlowSchedulers()
