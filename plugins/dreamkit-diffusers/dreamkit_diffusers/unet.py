"""The base of image decoders with a UNet."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from dreamkit import describe_value
from dreamkit_diffusers import networks, tiny_configs
from dreamkit_diffusers.cached_condition import Child, key_value_layers
from dreamkit_diffusers.configs import Configs, Layout
from dreamkit_diffusers.keys import NO_SHIFT
from dreamkit_diffusers.noise import NoiseDecoder
from dreamkit_diffusers.schedulers import NOISE

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

DECODERS = {None: "stable-diffusion", "text_time": "sdxl"}  # by addition_embed_type


class UNetDecoder(NoiseDecoder):
    """A UNet that attends to a context, on the latents of an autoencoder (arXiv 2112.10752).

    `addition_embed_type` is this setting's value in the UNets of the decoder.
    """

    layout = Layout("unet", networks.UNET, networks.KL, NOISE, {"vae": NO_SHIFT})
    addition_embed_type: ClassVar[str | None] = None
    unet: UNet2DConditionModel
    adapter_targets = networks.ATTENTION_LAYERS
    adapter_root = "unet"

    @classmethod
    def tiny_unet_config(cls, **unet: Any) -> NoiseDecoder.Config:
        """Return a tiny Config with these values of its UNet."""
        config = {
            "unet": {**tiny_configs.UNET, **unet},
            "vae": tiny_configs.VAE,
            "scheduler": tiny_configs.SCHEDULE,
        }
        return cls.Config(config=copy.deepcopy(config))

    @classmethod
    def check(cls, config: NoiseDecoder.Config, configs: Configs) -> None:
        super().check(config, configs)
        value, expected = configs.values["unet"]["addition_embed_type"], cls.addition_embed_type
        if value == expected:
            return
        remedy = (
            f"use the image decoder '{DECODERS[value]}' for this UNet"
            if value in tuple(DECODERS)
            else "no image decoder of this plug-in supports this UNet; name another one"
        )
        configs.add_problem(
            "unet.addition_embed_type",
            f"expected {describe_value(expected)} for '{DECODERS[expected]}', got {describe_value(value)}; {remedy}",
        )

    def condition_layers(self) -> Iterator[Child]:
        # imported here, after the UNet has loaded it: a spec needs none of diffusers' networks
        from diffusers.models.attention import BasicTransformerBlock

        for block in self.unet.modules():
            if isinstance(block, BasicTransformerBlock):
                if block.only_cross_attention:
                    yield from key_value_layers(block.attn1)
                yield from key_value_layers(block.attn2)
