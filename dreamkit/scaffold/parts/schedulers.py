"""Schedulers: the steps of drawing from noise to an image."""

from typing import Any

import torch
from torch import Tensor

from dreamkit import DreamkitError, did_you_mean


class Euler:
    """Euler's method in equal steps, with the interface of a diffusers scheduler, as dreamkit requires."""

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        self.timesteps = torch.linspace(1, 0, num_inference_steps + 1, device=device)[:-1]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> tuple[Tensor]:
        return (sample - model_output / len(self.timesteps),)


SCHEDULERS = {"euler": Euler}


def scheduler_of(name: str | None) -> Euler:
    """Return a new scheduler; None means the first.

    Raises:
        DreamkitError: the name is unknown. (It is a ValueError, which `ImageDecoder.scheduler` must raise.)
    """
    name = next(iter(SCHEDULERS)) if name is None else name
    if name not in SCHEDULERS:
        raise DreamkitError(f"unknown scheduler '{name}'; {did_you_mean(name, SCHEDULERS)}")
    return SCHEDULERS[name]()
