"""Stable Diffusion 1.5 and 2.1 (arXiv 2112.10752)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from dreamkit import Condition
from dreamkit_diffusers.configs import Configs
from dreamkit_diffusers.keys import NO_MEAN, NO_SHIFT
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.unet import UNetDecoder
from dreamkit_diffusers.values import is_count


class StableDiffusion(UNetDecoder):
    """A UNet conditioned on a context alone."""

    layout = replace(UNetDecoder.layout, fixed={"vae": NO_SHIFT | NO_MEAN})

    @classmethod
    def tiny_config(cls) -> UNetDecoder.Config:
        return cls.tiny_unet_config()

    @classmethod
    def sample_size(cls, configs: Configs) -> Any:
        """Return the UNet's size in latents, at least 64 in a config of diffusers before 0.9, as its pipeline does.

        Such configs of the first models have a size that no model was trained with.
        """
        size, version = super().sample_size(configs), configs.raw["unet"].get("_diffusers_version")
        early = re.match(r"0\.[0-8](\.|$)", str(version))
        return 64 if early and is_count(size) and size < 64 else size

    @classmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        # CLIP's text encoders end in a layer norm, so the scale is 1
        return {"context_dim": network["cross_attention_dim"], "context_scale": 1.0}

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        output = self.unet(noisy, timesteps_N, condition.context, encoder_attention_mask=condition.mask)
        return output.sample

    def scheduler(self, name: str | None = None) -> Any:
        """Create a scheduler that never clips latents, whatever the config sets, as diffusers' pipeline does.

        The pipeline also replaces any `steps_offset` by 1. Here the config's is used: the published code of
        arXiv 2309.11499 draws with it.
        """
        return self.layout.schedulers.create(name, {**self.schedule_config, "clip_sample": False})
