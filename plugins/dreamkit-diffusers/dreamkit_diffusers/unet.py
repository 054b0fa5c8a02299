"""What decoders with a UNet have in common."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from dreamkit_diffusers import miniatures, networks
from dreamkit_diffusers.components import Described, Layout
from dreamkit_diffusers.constant import Place, key_value_layers
from dreamkit_diffusers.noise import NoiseDecoder
from dreamkit_diffusers.schedulers import NOISE

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

# settings by which a UNet wants another condition than a context
CONDITIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim")
ADDITION = CONDITIONS[0]
DECODERS = {None: "stable-diffusion", "text_time": "sdxl"}  # by what their UNets have there


class UNetDecoder(NoiseDecoder):
    """A UNet, whose context is attended to, on the latents of an autoencoder (arXiv 2112.10752).

    `addition` is what a UNet of this decoder has in `addition_embed_type`.
    """

    layout = Layout("unet", networks.UNET, networks.KL, NOISE)
    addition: ClassVar[str | None] = None
    unet: UNet2DConditionModel
    # those of the UNet's transformers
    adapter_targets = tuple(
        f"{attention}.{layer}"
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    )
    adapter_root = "unet"

    @classmethod
    def small(cls, **unet: Any) -> NoiseDecoder.Config:
        """The Config of a miniature, with values of its UNet set."""
        config = {
            "unet": {**miniatures.UNET, **unet},
            "vae": miniatures.VAE,
            "scheduler": miniatures.SCHEDULE,
        }
        return cls.Config(config=copy.deepcopy(config))

    @classmethod
    def check(cls, config: NoiseDecoder.Config, found: Described) -> None:
        super().check(config, found)
        unet = found.values["unet"]
        for key in CONDITIONS:
            given, wanted = unet[key], cls.addition if key == ADDITION else None
            if given == wanted:
                continue
            is_others = key == ADDITION and given in DECODERS
            remedy = (
                f"use the image decoder '{DECODERS[given]}' for this UNet"
                if is_others
                else "no image decoder here gives the condition that this UNet wants; name another one"
            )
            message = (
                f"{given!r} found, but '{DECODERS[cls.addition]}' takes a UNet with {wanted!r}; {remedy}"
            )
            found.problem(f"unet.{key}", message)

    def constant_layers(self) -> Iterator[Place]:
        # the UNet has imported it: at the top of this file it would load diffusers' networks for every spec
        from diffusers.models.attention import BasicTransformerBlock

        for block in self.unet.modules():
            if isinstance(block, BasicTransformerBlock):
                if block.only_cross_attention:
                    yield from key_value_layers(block.attn1)
                yield from key_value_layers(block.attn2)
