"""Sampling schedulers by name, all of them diffusers' own: those that fit an objective, made from one config.

A class is imported when it is used: some bring scipy.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
from diffusers.schedulers import KarrasDiffusionSchedulers

from dreamkit import DreamkitError, did_you_mean

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

MAX_TIMESTEPS = 100_000

Table = dict[str, tuple[str, dict[str, Any]]]


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class Schedulers(ABC):
    """The schedulers that fit one objective.

    `objective` says it in words, and `table` has, by what a recipe writes, the name of the class and what is set over
    the config.
    """

    objective: ClassVar[str]
    default: ClassVar[str]  # the name of a class
    table: ClassVar[Table]
    sort: ClassVar[str]  # the classes that a config may name, in words

    @abstractmethod
    def candidates(self) -> Iterable[str]:
        """Return the names of the classes that a config may name, if each `takes` its betas."""

    def takes(self, named: str) -> bool:
        """Return whether a config may name this class."""
        return named in self.candidates()

    @abstractmethod
    def misfits(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What of a config makes no schedule of this objective: keys, and what is wrong with them."""

    @abstractmethod
    def settings(self, scheduler: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config in the words of a class, whichever class it was written for."""

    def keys(self) -> set[str]:
        """What a config may hold: one file serves many classes, and each takes its own keys."""
        return {key for named in self.candidates() if self.takes(named) for key in _parameters(named)}

    def problems(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """All that is wrong with the values of a config, by key."""
        steps, named = config.get("num_train_timesteps", 1), config.get("_class_name")
        if not is_count(steps) or steps > MAX_TIMESTEPS:
            message = f"{steps!r} found, but a whole number from 1 to {MAX_TIMESTEPS} is wanted"
            yield "num_train_timesteps", message
        if named is not None and not self.takes(named):
            known = [each for each in self.candidates() if self.takes(each)]
            yield (
                "_class_name",
                f"it is of class '{named}', but {self.sort} is wanted; {did_you_mean(named, known)}",
            )
        else:
            yield from self.misfits(config)

    def training(self, config: Mapping[str, Any]) -> Any:
        """A scheduler of the default class, whichever class the config names."""
        return _make(self.default, self.settings(self.default, config))

    def own(self, config: Mapping[str, Any]) -> SchedulerMixin:
        """A fresh scheduler of the class that the config itself names, or else of the default one."""
        named = config.get("_class_name", self.default)
        return _make(named, self.settings(named, config))

    def tried(self, config: Mapping[str, Any]) -> Iterator[SchedulerMixin]:
        """Yield what `own` and `training` would make, for their values only.

        Their config lacks the keys of other classes: to find these, diffusers imports all of its schedulers.
        """
        for named in (config.get("_class_name", self.default), self.default):
            settings = self.settings(named, config).items()
            yield getattr(diffusers, named)(
                **{key: value for key, value in settings if key in _parameters(named)}
            )

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
        return _make(scheduler, self.settings(scheduler, config), **fixed)


class NoiseSchedulers(Schedulers):
    """Those over a table of betas: what is trained takes noise out, as in DDPM (arXiv 2006.11239)."""

    objective = "denoising over a noise schedule"
    default = "DDPMScheduler"
    sort = f"one with a table of betas, such as '{default}',"
    table: ClassVar[Table] = {
        "ddpm": ("DDPMScheduler", {}),
        "ddim": ("DDIMScheduler", {}),
        "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "unipc": ("UniPCMultistepScheduler", {}),
        "euler": ("EulerDiscreteScheduler", {}),
    }
    predictions = ("epsilon", "v_prediction", "sample")

    def candidates(self) -> Iterable[str]:
        return KarrasDiffusionSchedulers.__members__

    def takes(self, named: str) -> bool:
        return super().takes(named) and "beta_schedule" in _parameters(named)

    def misfits(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        kind = config.get("prediction_type", self.predictions[0])
        if kind not in self.predictions:
            yield (
                "prediction_type",
                f"{kind!r} found, but {' or '.join(self.predictions)} is wanted; "
                f"{did_you_mean(kind, self.predictions)}",
            )

    def settings(self, scheduler: str, config: Mapping[str, Any]) -> dict[str, Any]:
        # These classes take each other's configs, but some have no such setting, and DDPM's default clips latents,
        # which are not pixels, to [-1, 1].
        return {"clip_sample": False, **config}


class FlowSchedulers(Schedulers):
    """Those along straight lines from noise to image: what is trained is their direction (arXiv 2210.02747)."""

    objective = "flow matching"
    default = "FlowMatchEulerDiscreteScheduler"
    table: ClassVar[Table] = {
        "flow-match-euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        "unipc": ("UniPCMultistepScheduler", {}),
    }
    sort = " or ".join(f"'{named}'" for named, _ in table.values())
    # what makes a scheduler over betas one of flow matching
    along: ClassVar[dict[str, Any]] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    # ways of spacing sigmas that a class takes to be those of betas: along straight lines it would draw NaN
    unspaced: ClassVar[dict[str, tuple[str, ...]]] = {
        "DPMSolverMultistepScheduler": ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        "UniPCMultistepScheduler": ("use_exponential_sigmas", "use_beta_sigmas"),
    }

    def candidates(self) -> Iterable[str]:
        return [named for named, _ in self.table.values()]

    def misfits(self, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        named = config.get("_class_name", self.default)
        if named != self.default:
            for key, wanted in self.along.items():
                if config.get(key) != wanted:
                    yield key, f"{config.get(key)!r} found, but {wanted!r} is wanted for flow matching"
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
        is_default = config.get("_class_name", self.default) == self.default
        return float(config.get("shift" if is_default else "flow_shift", 1.0))

    def settings(self, scheduler: str, config: Mapping[str, Any]) -> dict[str, Any]:
        known = _parameters(scheduler)
        told = {"shift": self.shift(config), "flow_shift": self.shift(config), **self.along}
        unknown = self.unspaced.get(scheduler, ())
        return {
            key: value for key, value in {**config, **told}.items() if key in known and key not in unknown
        }


def _parameters(named: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(diffusers, named)).parameters


def _make(named: str, settings: Mapping[str, Any], **fixed: Any) -> SchedulerMixin:
    return getattr(diffusers, named).from_config(settings, **fixed)


NOISE, FLOW = NoiseSchedulers(), FlowSchedulers()
