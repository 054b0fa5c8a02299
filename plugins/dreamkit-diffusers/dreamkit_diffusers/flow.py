"""The objective of flow-matching decoders: straight lines from noise to image (arXiv 2209.03003, 2210.02747)."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamkit_diffusers.latent import LatentDecoder
from dreamkit_diffusers.schedulers import FLOW


class FlowDecoder(LatentDecoder):
    """A decoder that predicts eps - x from latents (1 - sigma) x + sigma eps, at noise level sigma in [0, 1].

    A timestep is sigma times the schedule's number of training timesteps, and may be fractional.
    """

    @property
    def _num_timesteps(self) -> int:
        return int(self.schedule_config.get("num_train_timesteps", 1000))

    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample from a logit-normal with mean 0 and deviation 1, the best of arXiv 2403.03206 (3.1).

        They are shifted as when drawing (5.3.2). These are the defaults of diffusers' training scripts for SD3 and
        Sana, without their rounding to whole timesteps. They are on the generator's device, or else the network's.
        """
        device = self.network.device if generator is None else generator.device
        sigmas_N = torch.randn(count, generator=generator, device=device).sigmoid()
        shift = FLOW.shift(self.schedule_config)
        return self._num_timesteps * shift * sigmas_N / (1 + (shift - 1) * sigmas_N)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps_N: Tensor) -> tuple[Tensor, Tensor]:
        # in float32: half precision rounds the least noisy levels to no noise at all
        clean, noise = latents.float(), noise.float()
        sigmas = (timesteps_N.float() / self._num_timesteps).view(-1, *[1] * (clean.dim() - 1))
        return ((1 - sigmas) * clean + sigmas * noise).to(latents.dtype), noise - clean
