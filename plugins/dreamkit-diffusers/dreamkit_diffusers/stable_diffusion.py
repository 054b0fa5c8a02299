"""Stable Diffusion 1.5 and 2.1 (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dreamkit import Condition
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.unet import UNetDecoder


class StableDiffusion(UNetDecoder):
    """A UNet conditioned on a context alone."""

    @classmethod
    def tiny_config(cls) -> UNetDecoder.Config:
        return cls.tiny_unet_config()

    @classmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        # CLIP's text encoders end in a layer norm, so the scale is 1
        return {"context_dim": network["cross_attention_dim"], "context_scale": 1.0}

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        output = self.unet(noisy, timesteps_N, condition.context, encoder_attention_mask=condition.mask)
        return output.sample
