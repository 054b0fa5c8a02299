"""The objective of decoders with a noise schedule (arXiv 2006.11239): they predict noise, velocity or image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dreamkit import Condition, DecoderSpec
from dreamkit_diffusers.configs import Configs
from dreamkit_diffusers.latent import LatentDecoder
from dreamkit_diffusers.values import number_error


class NoiseDecoder(LatentDecoder):
    """A decoder whose `schedule` adds noise in training."""

    @dataclass(frozen=True, kw_only=True)
    class Config(LatentDecoder.Config):
        """Settings of a decoder.

        `image_size`: side in pixels of targets and drawn images; None: the UNet's own.
        `snr_gamma`: weights the loss by Min-SNR (arXiv 2303.09556, which proposes 5); None: no weights.
        `config`: {unet: {...}, vae: {...}, scheduler: {...}}, the values of diffusers' config files.
        """

        snr_gamma: float | None = field(default=None, metadata={"loss_only": True})

    def __init__(
        self, config: NoiseDecoder.Config, spec: DecoderSpec, configs: Configs, models: Mapping[str, Any]
    ) -> None:
        super().__init__(config, spec, configs, models)
        self.schedule = self.layout.schedulers.for_training(self.schedule_config)
        self.snr_gamma = config.snr_gamma

    @classmethod
    def check(cls, config: NoiseDecoder.Config, configs: Configs) -> None:
        error = None if config.snr_gamma is None else number_error(config.snr_gamma)
        if error is not None:
            configs.problems["snr_gamma"] = error

    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample uniformly from the schedule, on the generator's device, or else the network's."""
        device = self.network.device if generator is None else generator.device
        return torch.randint(
            self.schedule.config.num_train_timesteps, (count,), generator=generator, device=device
        )

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps_N: Tensor) -> tuple[Tensor, Tensor]:
        # In float32: half precision rounds the least noisy timesteps to no noise at all. diffusers leaves its
        # table on the device of its last use, so a training step copies nothing.
        clean, noise = latents.float(), noise.float()
        noisy = self.schedule.add_noise(clean, noise, timesteps_N).to(latents.dtype)
        kind = self.schedule.config.prediction_type
        if kind == "epsilon":
            return noisy, noise
        return noisy, clean if kind == "sample" else self.schedule.get_velocity(clean, noise, timesteps_N)

    def loss(
        self,
        latents: Tensor,
        condition: Condition,
        extras: Mapping[str, Tensor],
        *,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if timesteps is None:
            timesteps = self.timesteps(latents.shape[0], generator).to(latents.device)
        loss_N = super().loss(
            latents, condition, extras, noise=noise, timesteps=timesteps, generator=generator
        )
        return loss_N if self.snr_gamma is None else loss_N * self._min_snr_weights(timesteps, self.snr_gamma)

    def _min_snr_weights(self, timesteps_N: Tensor, gamma: float) -> Tensor:
        """Return weights (N,) of the prediction's error: min(SNR, gamma) weighs that of the clean latents."""
        alphas_N = self.schedule.alphas_cumprod.to(timesteps_N.device)[timesteps_N]
        snr_N = alphas_N / (1 - alphas_N)
        kind = self.schedule.config.prediction_type
        if kind == "epsilon":
            return (gamma / snr_N).clamp(max=1)
        return snr_N.clamp(max=gamma) / (snr_N + 1 if kind == "v_prediction" else 1)
