"""Stable Diffusion XL (arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit import Condition, to_rgb
from dreamkit_diffusers.configs import Configs
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.pixels import crop_corner
from dreamkit_diffusers.unet import UNetDecoder
from dreamkit_diffusers.values import count_error

TIME_IDS = 6  # original height and width, top and left of the crop, target height and width


class SDXL(UNetDecoder):
    """A UNet conditioned on a context, a pooled vector, and each image's original size and crop.

    Its extras are `time_ids` (N, 6): original height and width, top and left of the crop in the resized image, and
    target height and width, all in pixels. Half precision breaks its autoencoder, unless `force_upcast` is false.
    """

    addition_embed_type = "text_time"

    @classmethod
    def tiny_config(cls) -> UNetDecoder.Config:
        dim, pooled = 4, 10
        unet = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": dim,
            "projection_class_embeddings_input_dim": pooled + TIME_IDS * dim,
        }
        return cls.tiny_unet_config(use_linear_projection=True, **unet)

    @classmethod
    def check(cls, config: UNetDecoder.Config, configs: Configs) -> None:
        super().check(config, configs)
        unet = configs.values["unet"]
        if unet["addition_embed_type"] != cls.addition_embed_type:
            return
        for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            error = count_error(unet[key])
            if error is not None:
                configs.add_problem(f"unet.{key}", error)
                return
        dim, width = unet["addition_time_embed_dim"], unet["projection_class_embeddings_input_dim"]
        if width <= TIME_IDS * dim:
            configs.add_problem(
                "unet.projection_class_embeddings_input_dim",
                f"expected more than {TIME_IDS * dim}, got {width}; {TIME_IDS} numbers of addition_time_embed_dim "
                f"{dim} each leave no room for a pooled vector",
            )

    @classmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        times = TIME_IDS * network["addition_time_embed_dim"]
        return {
            "context_dim": network["cross_attention_dim"],
            # The context is the states of CLIP's two text encoders before their last layer. No norm fixes their
            # scale, but it is close to that of the normalized output.
            "context_scale": 1.0,
            "pooled_dim": network["projection_class_embeddings_input_dim"] - times,
            "float32_modules": ("vae",) if vae["force_upcast"] else (),
        }

    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = [to_rgb(picture) for picture in pictures]
        targets, _ = super().preprocess(pictures)
        side, rows = self.spec.image_size, []
        for picture in pictures:
            left, top = crop_corner(picture.width, picture.height, side)
            rows.append([picture.height, picture.width, top, left, side, side])
        return targets, {"time_ids": torch.tensor(rows, dtype=torch.float32)}

    def default_extras(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return extras of images whose original size is `size`, as in diffusers' pipeline."""
        return {"time_ids": torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32).repeat(count, 1)}

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        if "time_ids" not in extras:
            raise ValueError(
                f"expected extras with 'time_ids' (N, {TIME_IDS}), got {sorted(extras)}; pass the extras of preprocess "
                "or default_extras"
            )
        time_ids = extras["time_ids"].to(noisy.device)
        return self.unet(
            noisy,
            timesteps_N,
            condition.context,
            encoder_attention_mask=condition.mask,
            added_cond_kwargs={"text_embeds": condition.pooled, "time_ids": time_ids},
        ).sample
