"""How a flow is followed from noise to a picture."""

from typing import Any

import torch
from torch import Tensor

from dreamkit import DreamkitError, did_you_mean


class Euler:
    """Euler's method in equal steps, in the form of a scheduler of diffusers, which is what dreamkit draws with."""

    init_noise_sigma = 1.0  # drawing starts from noise of unit variance
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        self.timesteps = torch.linspace(1, 0, num_inference_steps + 1, device=device)[:-1]

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> tuple[Tensor]:
        return (sample - model_output / len(self.timesteps),)


SCHEDULERS = {"euler": Euler}


def scheduler_of(name: str | None) -> Euler:
    """A fresh scheduler by its name; None is the first.

    Raises:
        DreamkitError: there is none of this name. (It is a ValueError, as `ImageDecoder.scheduler` wants.)
    """
    name = next(iter(SCHEDULERS)) if name is None else name
    if name not in SCHEDULERS:
        raise DreamkitError(f"there is no scheduler '{name}'; {did_you_mean(name, SCHEDULERS)}")
    return SCHEDULERS[name]()
