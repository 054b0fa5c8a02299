"""Sampling schedulers by name, all of them diffusers' own, made from one noise schedule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from dreamkit import DreamkitError, did_you_mean

# what a recipe writes -> the class, and what is set over the noise schedule's config
SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
}


def _classes() -> dict[str, type[SchedulerMixin]]:
    """diffusers' schedulers that have a beta schedule, and so can share a config."""
    return {
        found.__name__: found
        for found in DDPMScheduler().compatibles
        if "beta_schedule" in inspect.signature(found).parameters
    }


def scheduler_keys() -> set[str]:
    """What a scheduler's config may hold: one file serves many classes, and each takes its own keys."""
    return {key for found in _classes().values() for key in inspect.signature(found).parameters}


def scheduler_class(name: str) -> type[SchedulerMixin]:
    """The diffusers scheduler class of this name; one with a beta schedule.

    Raises:
        DreamkitError: any other name.
    """
    known = _classes()
    if name not in known:
        raise DreamkitError(
            f"it is of class '{name}', but one with a table of betas is wanted, such as "
            f"'{DDPMScheduler.__name__}'; {did_you_mean(name, known)}"
        )
    return known[name]


def own_scheduler(schedule_config: Mapping[str, Any]) -> SchedulerMixin:
    """A fresh scheduler of the class that the config itself names; DDPM where it names none."""
    named = schedule_config.get("_class_name", DDPMScheduler.__name__)
    return scheduler_class(named).from_config(dict(schedule_config))


def named_scheduler(name: str, schedule_config: Mapping[str, Any]) -> SchedulerMixin:
    """A fresh scheduler by dreamkit's name for it.

    Raises:
        DreamkitError: no such name.
    """
    if name not in SCHEDULERS:
        raise DreamkitError(f"there is no scheduler '{name}'; {did_you_mean(name, SCHEDULERS)}")
    scheduler, settings = SCHEDULERS[name]
    return scheduler.from_config(dict(schedule_config), **settings)
