"""Stable Diffusion XL (arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit import Condition, to_rgb
from dreamkit_diffusers.components import Described
from dreamkit_diffusers.latent import Extras
from dreamkit_diffusers.pixels import square_corner
from dreamkit_diffusers.schedulers import is_count
from dreamkit_diffusers.unet import UNetDecoder

TIME_IDS = 6  # original height and width, top and left of the crop, target height and width


class SDXL(UNetDecoder):
    """A UNet that is given a context, a pooled vector, and of each image its original size and how it was cut.

    Its extras are `time_ids` (N, 6): original height and width, top and left of the crop in the resized picture, and
    target height and width, all in pixels. Half precision breaks its autoencoder, unless `force_upcast` is false.
    """

    addition = "text_time"

    @classmethod
    def tiny_config(cls) -> UNetDecoder.Config:
        dim, pooled = 4, 10
        unet = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": dim,
            "projection_class_embeddings_input_dim": pooled + TIME_IDS * dim,
        }
        return cls.small(use_linear_projection=True, **unet)

    @classmethod
    def check(cls, config: UNetDecoder.Config, found: Described) -> None:
        super().check(config, found)
        unet = found.values["unet"]
        if unet["addition_embed_type"] != cls.addition:
            return
        dim, width = unet["addition_time_embed_dim"], unet["projection_class_embeddings_input_dim"]
        for key, value in (
            ("addition_time_embed_dim", dim),
            ("projection_class_embeddings_input_dim", width),
        ):
            if not is_count(value):
                found.problem(f"unet.{key}", f"{value!r} found, but a whole number from 1 is wanted")
                return
        if width <= TIME_IDS * dim:
            found.problem(
                "unet.projection_class_embeddings_input_dim",
                f"{width} found, but {TIME_IDS} numbers of addition_time_embed_dim {dim} each leave no room in it for "
                f"a pooled vector; more than {TIME_IDS * dim} is wanted",
            )

    @classmethod
    def condition_spec(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
        times = TIME_IDS * network["addition_time_embed_dim"]
        return {
            "context_dim": network["cross_attention_dim"],
            # It is used to what CLIP's two text encoders carry before their last layer, which no norm holds to a
            # scale; it is about that of the normed output.
            "context_scale": 1.0,
            "pooled_dim": network["projection_class_embeddings_input_dim"] - times,
            "float32_modules": ("vae",) if vae["force_upcast"] else (),
        }

    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = [to_rgb(picture) for picture in pictures]
        targets, _ = super().preprocess(pictures)
        side, rows = self.spec.image_size, []
        for picture in pictures:
            left, top = square_corner(picture.width, picture.height, side)
            rows.append([picture.height, picture.width, top, left, side, side])
        return targets, {"time_ids": torch.tensor(rows, dtype=torch.float32)}

    def default_extras(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """Those of images that were `size` from the first, as diffusers' pipeline has them."""
        return {"time_ids": torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32).repeat(count, 1)}

    def predict(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        if "time_ids" not in extras:
            raise ValueError(
                f"extras {sorted(extras)} found, but 'time_ids' (N, {TIME_IDS}) are wanted; give those of preprocess "
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
