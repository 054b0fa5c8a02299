"""Ways from noise (time 1) to a picture (time 0), in the form of diffusers' schedulers."""

import torch

from dreamkit import DreamkitError, Scheduler, did_you_mean


class Euler:
    power = 1.0

    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.linspace(1, 0, num_inference_steps + 1, device=device)[:-1] ** self.power

    def step(self, model_output, timestep, sample, **options):
        later = self.timesteps[self.timesteps < timestep]
        until = later.max() if len(later) else 0
        return (sample + (until - timestep) * model_output,)


class Late(Euler):
    """Spends most of its steps near the picture."""

    power = 2.0


SCHEDULERS = {"euler": Euler, "late": Late}


def scheduler_of(name: str | None) -> Scheduler:
    if name is not None and name not in SCHEDULERS:
        raise DreamkitError(f"no scheduler '{name}'; {did_you_mean(name, SCHEDULERS)}")
    return SCHEDULERS[name or "euler"]()
